"""Witnesses that a cluster file names: whether each is there, and watches this log. Nothing is cosigned for it that wasn't."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Final

import aiohttp

from fabric.audit.checkpoint import Checkpoint, Signer
from fabric.audit.merkle import EMPTY_ROOT
from fabric.audit.witness.requests import written
from fabric.config.witnesses import WitnessConfig
from fabric.doctor.findings import Finding, ok, warn

_TIMEOUT_S: Final = 5
_OK, _FORBIDDEN, _NOT_FOUND, _CONFLICT = 200, 403, 404, 409


def check_witnesses(witnesses: Sequence[WitnessConfig], *, origin: str, signing_key: bytes | None) -> list[Finding]:
    """Ask each about an empty tree, which every history goes on from: it answers how far it has cosigned this one.

    Args:
        witnesses: the cluster file's.
        origin: the log's name.
        signing_key: the log's; None = there is none yet, so that a witness can only say whether it knows the name.
    """
    signer = Signer(origin, signing_key) if signing_key is not None else None
    return list(asyncio.run(_all(witnesses, origin, signer))) if witnesses else []


async def _all(witnesses: Sequence[WitnessConfig], origin: str, signer: Signer | None) -> Sequence[Finding]:
    return await asyncio.gather(*(_look(each, origin, signer) for each in witnesses))


async def _look(at: WitnessConfig, origin: str, signer: Signer | None) -> Finding:
    name = f"witness {at.key.partition('+')[0]}"
    body = written(0, (), _empty_tree(origin, signer))
    try:
        async with asyncio.timeout(_TIMEOUT_S), aiohttp.ClientSession() as session:
            asked = session.post(f"{at.url.rstrip('/')}/add-checkpoint", data=body, allow_redirects=False)
            async with asked as answer:
                status, said = answer.status, (await answer.content.read(200)).decode(errors="replace").strip()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        remedy = "check that it runs and can be reached from here; meanwhile checkpoints are given out without it"
        return warn(name, f"{at.url}: {str(error) or type(error).__name__}", remedy=remedy)
    if status in (_OK, _CONFLICT):
        return ok(name, f"{at.url}: watches {origin}, and has cosigned {int(said) if said.isdecimal() else 0} entries")
    if status == _FORBIDDEN and signer is None:
        return ok(name, f"{at.url}: knows a log of the name {origin}; with which key is seen when this one has its own")
    key = str(signer.verifier) if signer is not None else "the key that `fabric up` says"
    if status in (_FORBIDDEN, _NOT_FOUND):
        what = "does not know the log" if status == _NOT_FOUND else "knows another key of the log"
        remedy = f"have whoever runs it add --log {key}"
        return warn(name, f"{at.url}: {what} {origin}", remedy=remedy)
    return warn(name, f"{at.url}: answers {status}", remedy="check the url: it is no witness of C2SP tlog-witness")


def _empty_tree(origin: str, signer: Signer | None) -> str:
    if signer is not None:
        return signer.checkpoint(size=0, root=EMPTY_ROOT)
    return f"{Checkpoint(origin, 0, EMPTY_ROOT).text()}\n\u2014 {origin} {base64.b64encode(bytes(68)).decode()}\n"
