"""What a cluster file says of witnesses: who is asked to cosign the log's checkpoints."""

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from fabric.audit.verify import Wrong
from fabric.audit.verify.cosignatures import witness_key
from fabric.config.sections import Section


def _of_a_witness(key: str) -> str:
    try:
        witness_key(key)
    except (Wrong, ValueError, IndexError):
        raise PydanticCustomError("witness", "a witness's public key, as `fabric audit witness` says it") from None
    return key


class WitnessConfig(Section):
    """One that is asked in the background (C2SP tlog-witness). How many must have cosigned is what a customer's policy says."""

    url: Annotated[str, Field(pattern=r"^https?://\S+$", max_length=500)]
    """Where it is: `/add-checkpoint` is put behind it."""
    key: Annotated[str, AfterValidator(_of_a_witness)]
    """What it cosigns with, `<name>+<id>+<base64>`."""
