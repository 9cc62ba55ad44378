"""What a cluster file says of the providers that take payments. Their secrets come from the environment or from files."""

from pathlib import Path
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo
from pydantic_core import PydanticCustomError

from fabric.config.sections import Section

_FILE: Final = "file:"
_SECRET_BYTES_MAX: Final = 64 * 1024


def _read(given: object, info: ValidationInfo) -> object:
    """What stands in a file that is named as `file:PATH`, relative to the cluster file's directory."""
    if not isinstance(given, str) or not given.startswith(_FILE):
        return given
    directory = (info.context or {}).get("directory", ".")
    path = Path(directory) / Path(given.removeprefix(_FILE)).expanduser()
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_SECRET_BYTES_MAX).strip()
    except (OSError, UnicodeDecodeError):
        raise PydanticCustomError("secret", "a file that can be read, after 'file:'") from None


Secret = Annotated[SecretStr, BeforeValidator(_read), Field(min_length=1)]
"""Never printed: write `${NAME}` and set it where `fabric up` runs, or `file:PATH`."""
Url = Annotated[str, Field(pattern=r"^https?://\S+$", max_length=500)]


class StripeConfig(Section):
    """Stripe, in an account of the operator's that is paid in CNY."""

    api_key: Secret
    """Secret, or restricted to Checkout Sessions, Payment Intents, Refunds, Charges and Disputes."""
    webhook_secret: Secret
    """Of the endpoint `https://HOST/payments/stripe`, with the events checkout.session.*, charge.refunded, charge.dispute.*,
    refund.* and payment_intent.*.
    """
    return_url: Url
    """Where a customer comes back to."""
    save_cards: bool = False
    """Keep customers' cards at Stripe, so that accounts can top themselves up without anybody there."""
    api: Url = "https://api.stripe.com"


class AlipayConfig(Section):
    """An application at Alipay with page pay (电脑网站支付)."""

    app_id: Annotated[str, Field(pattern=r"^[0-9]{8,32}$")]
    private_key: Secret
    """The application's, for RSA2: PEM, or base64 as Alipay's tools write it."""
    alipay_public_key: Secret
    """Alipay's own, not the application's."""
    notify_url: Annotated[str, Field(pattern=r"^https?://\S+/payments/alipay$", max_length=256)]
    """`https://HOST/payments/alipay`: the HTTP port, as Alipay reaches it."""
    return_url: Url
    gateway: Url = "https://openapi.alipay.com/gateway.do"
