"""Alipay: page pay, RSA2-signed notifications, refunds, and the daily bill.

Its protocol is forms signed with RSA (PKCS #1 v1.5, SHA-256), which takes a page with `cryptography`. The official library
is left out: 36,000 files of 450 MB that sign by a pure-Python RSA and log whole requests. A payment's id is its
`out_trade_no`, a refund's its `out_request_no`, and saying either again is the same request.
"""

import base64
import binascii
import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import aiohttp
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from fabric.errors import InvalidConfig, Unavailable
from fabric.gate.payment_events import PaymentState, Said
from fabric.gate.payment_views import PaymentView, RefundView
from fabric.payments.port import HOUR_US, TIMEOUT_S, Forged, Started, fen_of

NAME: Final = "alipay"
GATEWAY: Final = "https://openapi.alipay.com/gateway.do"
CHINA: Final = timezone(timedelta(hours=8))
"""All its times are of."""
RSA_BITS_MIN: Final = 2048
SUBJECT_MAX: Final = 128
BILL_BYTES_MAX: Final = 64 * 2**20
BILL_AT: Final = time(10)
"""By then yesterday's bill is there (https://developer.aliyun.com/article/707638)."""
_TAKEN: Final = ("TRADE_SUCCESS", "TRADE_FINISHED")
_OK: Final = "10000"
_NOT_THERE: Final = ("ACQ.TRADE_NOT_EXIST",)
_DAYS_MAX: Final = 32
_TRADE_NO, _OURS, _KIND, _AMOUNT = "支付宝交易号", "商户订单号", "业务类型", "订单金额（元）"
_REFUND: Final = "退款批次号/请求号"
"""Columns of the daily bill (bill_type trade, a zip of tables in GBK): https://opendocs.alipay.com/open/204/106262."""


class Alipay:
    """One application there, of one merchant."""

    name = NAME
    thanks = b"success"
    listed_after_us = 27 * HOUR_US

    def __init__(
        self,
        *,
        app_id: str,
        private_key: str,
        alipay_public_key: str,
        notify_url: str,
        return_url: str,
        now_us: Callable[[], int],
        gateway: str = GATEWAY,
    ) -> None:
        """Say whose application it is.

        Args:
            app_id: as Alipay calls it.
            private_key: ours, PEM or the base64 that Alipay's tools write; its public half is known there.
            alipay_public_key: Alipay's, not ours.
            notify_url: where notifications come in.
            return_url: where a customer comes back to.
            now_us: what time it is.
            gateway: where its API is.

        Raises:
            InvalidConfig: a key is none, or too short.
        """
        self._app_id, self._gateway = app_id, gateway
        self._notify_url, self._return_url = notify_url, return_url
        self._key, self._theirs = _private(private_key), _public(alipay_public_key)
        self._now_us = now_us

    async def start(self, payment: PaymentView, *, before: PaymentView | None) -> Started:  # noqa: ARG002 - nothing is kept
        content = {
            "out_trade_no": payment.payment_id,
            "product_code": "FAST_INSTANT_TRADE_PAY",
            "total_amount": _yuan(payment.price_microcny),
            "subject": payment.buys[:SUBJECT_MAX],
            "time_expire": _moment(payment.until_us),
        }
        pages = {"notify_url": self._notify_url, "return_url": self._return_url}
        form = self._signed("alipay.trade.page.pay", content, **pages)
        return Started(payment.payment_id, f"{self._gateway}?{urlencode(form)}")

    async def confirm(self, payment: PaymentView) -> Said | None:
        found = await self._ask("alipay.trade.query", {"out_trade_no": payment.payment_id})
        over = self._now_us() >= payment.until_us
        if found.get("sub_code") in _NOT_THERE:
            # Its customer has never opened the page.
            return _said(payment.payment_id, payment.payment_id, PaymentState.EXPIRED) if over else None
        status = found.get("trade_status")
        if status in _TAKEN:
            return _said(payment.payment_id, found["trade_no"], PaymentState.PAID, amount=_micro(found["total_amount"]))
        if status == "TRADE_CLOSED":
            return _said(payment.payment_id, found.get("trade_no") or payment.payment_id, PaymentState.EXPIRED)
        return None

    async def refund(self, payment: PaymentView, refund: RefundView) -> Said | None:
        content = {
            "out_trade_no": payment.payment_id,
            "refund_amount": _yuan(refund.amount_microcny),
            "out_request_no": refund.refund_id,
            "refund_reason": refund.reason[:200],
        }
        found = await self._ask("alipay.trade.refund", content)
        if found.get("code") != _OK:
            raise Unavailable(f"Alipay refuses the refund: {found.get('sub_code')}", code="provider_refuses")
        return _said(
            payment.payment_id,
            found.get("trade_no") or payment.provider_ref,
            PaymentState.PAID,
            amount=payment.price_microcny,
            refunded=_micro(found["refund_fee"]),
        )

    async def list(self, from_us: int, until_us: int) -> tuple[Said, ...]:
        """From its daily bills, of days of China. One is written the morning after, and asked for earlier it is said not to exist,
        as one is of a day on which nothing was sold.
        """
        day, last = (_at(at_us).date() for at_us in (from_us, until_us - 1))
        written = datetime.combine(last + timedelta(days=1), BILL_AT, CHINA)
        if _at(self._now_us()) < written:
            raise Unavailable(
                f"Alipay writes its bill of {last} by {written:%Y-%m-%d %H:%M} in China: reconcile an earlier time"
                " (--until)",
                code="not_listed_yet",
            )
        rows: list[Mapping[str, str]] = []
        for _ in range(_DAYS_MAX):
            if day > last:
                break
            rows += await self._bill(day.isoformat())
            day += timedelta(days=1)
        return _of_rows(rows)

    async def hear(self, headers: Mapping[str, str], body: bytes) -> tuple[Said, ...]:  # noqa: ARG002 - it signs the body
        form = dict(parse_qsl(body.decode("utf-8", "strict"), keep_blank_values=True)) if _is_text(body) else {}
        signature = form.pop("sign", "")
        form.pop("sign_type", None)
        if not self._is_theirs(_content(form), signature) or form.get("app_id") != self._app_id:
            raise Forged("this notification is not signed by Alipay for this application", code="forged_notice")
        ours, theirs, status = form.get("out_trade_no", ""), form.get("trade_no", ""), form.get("trade_status")
        refunded = _micro(form.get("refund_fee") or "0")
        if status in _TAKEN or (status == "TRADE_CLOSED" and refunded):
            amount = _micro(form.get("total_amount") or "0")
            return (_said(ours, theirs, PaymentState.PAID, amount=amount, refunded=refunded),)
        if status == "TRADE_CLOSED":
            return (_said(ours, theirs or ours, PaymentState.EXPIRED),)
        return ()

    # -- its protocol ----------------------------------------------------------------------------------------------------

    def _signed(self, method: str, content: Mapping[str, Any], **more: str) -> dict[str, str]:
        form = {
            "app_id": self._app_id,
            "method": method,
            "format": "JSON",
            "charset": "utf-8",
            "sign_type": "RSA2",
            "timestamp": _moment(self._now_us()),
            "version": "1.0",
            "biz_content": json.dumps(content, ensure_ascii=False, separators=(",", ":")),
            **more,
        }
        signature = self._key.sign(_content(form).encode(), PKCS1v15(), SHA256())
        return {**form, "sign": base64.b64encode(signature).decode()}

    def _is_theirs(self, content: str, signature: str) -> bool:
        try:
            self._theirs.verify(base64.b64decode(signature, validate=True), content.encode(), PKCS1v15(), SHA256())
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return bool(content)

    async def _ask(self, method: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer, which is signed too.

        Raises:
            Unavailable: it didn't answer, or somebody else did.
        """
        form = self._signed(method, content)
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session,
                session.post(self._gateway, data=form) as answer,
            ):
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(
                f"Alipay doesn't answer ({type(error).__name__}): it is asked again", code="provider_away"
            ) from None
        name = f"{method.replace('.', '_')}_response"
        try:
            found: dict[str, Any] = json.loads(text)
            inner: dict[str, Any] = found[name]
        except (ValueError, KeyError, TypeError):
            raise Unavailable("Alipay's answer is none: it is asked again", code="provider_away") from None
        if not self._is_theirs(_part_of(text, name), str(found.get("sign", ""))):
            raise Unavailable("Alipay's answer is not signed by it: it is asked again", code="provider_away")
        if inner.get("code") == "20000":
            raise Unavailable("Alipay is busy: it is asked again", code="provider_away")
        return inner

    async def _bill(self, day: str) -> tuple[dict[str, str], ...]:
        found = await self._ask(
            "alipay.data.dataservice.bill.downloadurl.query", {"bill_type": "trade", "bill_date": day}
        )
        if found.get("code") != _OK:
            if str(found.get("sub_code", "")).endswith("bill_not_exist"):
                return ()  # nothing was sold
            raise Unavailable(f"Alipay has no bill of {day}: {found.get('sub_code')}", code="provider_away")
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=4 * TIMEOUT_S)) as session,
                session.get(found["bill_download_url"]) as answer,
            ):
                raw = await answer.content.read(BILL_BYTES_MAX)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"Alipay's bill doesn't come ({type(error).__name__})", code="provider_away") from None
        return tuple(rows_of(raw))


def rows_of(raw: bytes) -> list[dict[str, str]]:
    """The lines of a daily bill: a zip with tables of which one has every transaction, and not the sums.

    Raises:
        Unavailable: this is no such bill.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as folder:
            tables = [
                folder.read(each).decode("gb18030") for each in folder.infolist() if each.file_size <= BILL_BYTES_MAX
            ]
    except (zipfile.BadZipFile, UnicodeDecodeError):
        raise Unavailable("Alipay's bill can't be read", code="provider_away") from None
    for table in tables:
        lines = [line for line in table.splitlines() if line and not line.startswith("#")]
        if lines and _TRADE_NO in lines[0] and _KIND in lines[0]:
            names = [name.strip() for name in next(csv.reader([lines[0]]))]
            return [dict(zip(names, (cell.strip() for cell in row), strict=False)) for row in csv.reader(lines[1:])]
    return []


def _of_rows(rows: Iterable[Mapping[str, str]]) -> tuple[Said, ...]:
    """Payments with what was refunded of them, each once."""
    paid: dict[str, Said] = {}
    refunds: dict[str, dict[str, int]] = {}
    for row in rows:
        ours, amount = row.get(_OURS, ""), _micro(row.get(_AMOUNT) or "0")
        if row.get(_KIND) == "交易":
            paid[ours] = _said(ours, row.get(_TRADE_NO, "") or ours, PaymentState.PAID, amount=amount)
        elif row.get(_KIND) == "退款":
            refunds.setdefault(ours, {})[row.get(_REFUND, "")] = abs(amount)
    return tuple(
        Said(
            provider=NAME,
            payment_id=ours,
            provider_ref=said.provider_ref,
            state=said.state,
            amount=said.amount,
            refunded=sum(refunds.get(ours, {}).values()),
        )
        for ours, said in paid.items()
    )


def _content(form: Mapping[str, str]) -> str:
    """What is signed: names and values in order, without those that are empty."""
    return "&".join(f"{name}={value}" for name, value in sorted(form.items()) if value)


def _part_of(text: str, name: str) -> str:
    """The very text of one member of a JSON object: it is signed as it was written."""
    start = text.find(f'"{name}"')
    begin = text.find("{", start)
    if start < 0 or begin < 0:
        return ""
    _, end = json.JSONDecoder().raw_decode(text, begin)
    return text[begin:end]


def _said(payment_id: str, ref: str, state: PaymentState, *, amount: int = 0, refunded: int = 0) -> Said:
    return Said(provider=NAME, payment_id=payment_id, provider_ref=ref, state=state, amount=amount, refunded=refunded)


def _yuan(microcny: int) -> str:
    yuan, fen = divmod(fen_of(microcny), 100)
    return f"{yuan}.{fen:02}"


def _micro(yuan: str) -> int:
    """An amount as it is written there, in 10⁻⁶ CNY.

    Raises:
        Unavailable: it is no amount.
    """
    try:
        return int(Decimal(yuan.replace(",", "")) * 1_000_000)
    except InvalidOperation:
        raise Unavailable("Alipay names an amount that is none", code="provider_away") from None


def _at(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us // 1_000_000, tz=UTC).astimezone(CHINA)


def _moment(at_us: int) -> str:
    return f"{_at(at_us):%Y-%m-%d %H:%M:%S}"


def _is_text(body: bytes) -> bool:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _private(given: str) -> RSAPrivateKey:
    try:
        pem = given.strip().encode()
        key = (
            load_pem_private_key(pem, None)
            if pem.startswith(b"-----")
            else load_der_private_key(base64.b64decode(pem), None)
        )
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, RSAPrivateKey) or key.key_size < RSA_BITS_MIN:
        raise InvalidConfig(f"alipay.private_key is no RSA key of {RSA_BITS_MIN} bits or more, as PEM or base64")
    return key


def _public(given: str) -> RSAPublicKey:
    try:
        pem = given.strip().encode()
        key = load_pem_public_key(pem) if pem.startswith(b"-----") else load_der_public_key(base64.b64decode(pem))
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, RSAPublicKey) or key.key_size < RSA_BITS_MIN:
        raise InvalidConfig(f"alipay.alipay_public_key is no RSA key of {RSA_BITS_MIN} bits or more, as PEM or base64")
    return key
