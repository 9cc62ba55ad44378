"""Answers that are given again: to a request id with the same content, for 32 days; with other content it is a conflict.

Only a yes is remembered. A refusal that changed nothing leaves no trace at all: asked again, it is decided again. Time is
the journal's, so that a replay forgets what the live gate forgot. What must not happen twice even later has a name of its
own: jobs, keys and holds their ids, payments their references.
"""

import hashlib
from functools import lru_cache
from typing import Any, Final

import msgspec

from fabric.gate.core import Core
from fabric.gate.events import AnyEvent, BuyBundle, Cancel, CreateKey, OpenAccount, Submit, Subscribe, TopUp
from fabric.gate.instructions import Outcome
from fabric.gate.serving_events import OfferModel
from fabric.gate.state import Answered

REMEMBERED_US: Final = 32 * 86_400_000_000
EACH_MAX: Final = 32_768
"""Of one account; beyond, its oldest are forgotten sooner. At the door's own rate that is minutes: longer than anybody tries."""

_LATER: Final[dict[type[msgspec.Struct], tuple[str, ...]]] = {
    BuyBundle: ("channel",),
    Cancel: ("at_once",),
    CreateKey: ("scopes", "requests_per_min", "tokens_per_min"),
    OfferModel: ("spec.parent",),
    OpenAccount: ("credit_limit_uhs",),
    Submit: ("spec.tags",),
    Subscribe: ("payment_ref", "channel"),
    TopUp: ("channel",),
}
"""Fields that came when answers were remembered already, and those of a record in a field. An event that says nothing in
them is the one from before.
"""
_encode: Final = msgspec.json.Encoder().encode


def digest_of(event: AnyEvent) -> bytes:
    """What was asked: the same for the same content, in the next version too."""
    later = _LATER.get(type(event))
    if later is None:
        return hashlib.sha256(_encode(event)).digest()
    said = msgspec.to_builtins(event)
    for path in later:
        _leave_out_unsaid(event, said, path)
    return hashlib.sha256(_encode(said)).digest()


def _leave_out_unsaid(record: msgspec.Struct, said: dict[str, Any], path: str) -> None:
    *above, name = path.split(".")
    for step in above:
        record, said = getattr(record, step), said[step]
    field = _field(type(record), name)
    if getattr(record, name) == field.default:
        del said[field.encode_name]


@lru_cache
def _field(kind: type[msgspec.Struct], name: str) -> msgspec.structs.FieldInfo:
    return next(field for field in msgspec.structs.fields(kind) if field.name == name)


def known_as(account_id: str | None, request_id: str) -> str:
    return f"{account_id or ''}/{request_id}"


def recall(core: Core, name: str, *, now_us: int) -> Answered | None:
    """What was answered to it, if that is remembered."""
    found = core.state.answered.get(name)
    return found if found is not None and now_us - found.at_us < REMEMBERED_US else None


def remember(core: Core, name: str, event: AnyEvent, *, outcome: Outcome) -> None:
    """Remember an answer from now on, and forget those that are old enough."""
    if core.now_us >= core.answers_until_us:
        _forget_old(core)
    core.state.answered[name] = Answered(digest_of(event), outcome, core.now_us)
    account_id = _account_of(name)
    own = core.answers_of.get(account_id)
    if own is None:
        own = core.answers_of[account_id] = {}
    own[name] = None
    if len(own) > EACH_MAX:
        _forget(core, next(iter(own)))


def index(core: Core) -> None:
    """Which answers are whose, oldest first. Those from before answers had a time count from when the state was made."""
    for name, each in core.state.answered.items():
        if not each.at_us:
            core.state.answered[name] = Answered(each.digest, each.outcome, core.state.now_us)
        core.answers_of.setdefault(_account_of(name), {})[name] = None


def _forget_old(core: Core) -> None:
    """They stand in the order of their times, so what comes in later is forgotten later than all of them."""
    answered = core.state.answered
    core.answers_until_us = core.now_us + REMEMBERED_US
    while answered:
        oldest = next(iter(answered))
        until_us = answered[oldest].at_us + REMEMBERED_US
        if core.now_us < until_us:
            core.answers_until_us = until_us
            break
        _forget(core, oldest)


def _forget(core: Core, name: str) -> None:
    del core.state.answered[name]
    account_id = _account_of(name)
    del core.answers_of[account_id][name]
    if not core.answers_of[account_id]:
        del core.answers_of[account_id]


def _account_of(name: str) -> str:
    return name.partition("/")[0]
