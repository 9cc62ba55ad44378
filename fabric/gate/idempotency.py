"""Answers that are given again: to a request id with the same content, for 32 days; with other content it is a conflict.

Only a yes is remembered. A refusal that changed nothing leaves no trace at all: asked again, it is decided again. Time is
the journal's, so that a replay forgets what the live gate forgot. What must not happen twice even later has a name of its
own: jobs, keys and holds their ids, payments their references.
"""

import hashlib
from typing import Any, Final

import msgspec

from fabric.gate.core import Core
from fabric.gate.events import AnyEvent, BuyBundle, CreateKey, OpenAccount, Submit, Subscribe, TopUp
from fabric.gate.instructions import Outcome
from fabric.gate.state import Answered

REMEMBERED_US: Final = 32 * 86_400_000_000
EACH_MAX: Final = 32_768
"""Of one account; beyond, its oldest are forgotten sooner. At the door's own rate that is minutes: longer than anybody tries."""

_LATER: Final[dict[type[msgspec.Struct], tuple[str, ...]]] = {
    BuyBundle: ("channel",),
    CreateKey: ("scopes", "requests_per_min", "tokens_per_min"),
    OpenAccount: ("credit_limit_uhs",),
    Subscribe: ("payment_ref", "channel"),
    TopUp: ("channel",),
}
_LATER_OF_A_JOB: Final = ("tags",)
"""Fields that came when answers were remembered already. An event that says nothing in them is the one from before."""
_LEFT_OUT: Final = {
    kind: [field for field in msgspec.structs.fields(kind) if field.name in names] for kind, names in _LATER.items()
}
_encode: Final = msgspec.json.Encoder().encode


def digest_of(event: AnyEvent) -> bytes:
    """What was asked: the same for the same content, in the next version too."""
    if isinstance(event, Submit):
        return hashlib.sha256(_encode(_as_before(event))).digest()
    if type(event) not in _LEFT_OUT:
        return hashlib.sha256(_encode(event)).digest()
    said = msgspec.to_builtins(event)
    for field in _LEFT_OUT[type(event)]:
        if getattr(event, field.name) == field.default:
            del said[field.encode_name]
    return hashlib.sha256(_encode(said)).digest()


def _as_before(event: Submit) -> Any:
    """A submission without what came later and says nothing."""
    said = msgspec.to_builtins(event)
    for name in _LATER_OF_A_JOB:
        if not getattr(event.spec, name):
            del said["spec"][name]
    return said


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
