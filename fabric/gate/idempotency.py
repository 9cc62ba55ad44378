"""Answers that are given again: to a request id with the same content, for 32 days; with other content it is a conflict.

Only a yes is remembered. A refusal that changed nothing leaves no trace at all: asked again, it is decided again. Time is
the journal's, so that a replay forgets what the live gate forgot. What must not happen twice even later has a name of its
own: jobs, keys and holds their ids, payments their references.
"""

from collections import deque
from typing import Final

import msgspec

from fabric.gate.account_events import CreateKey
from fabric.gate.canonical import digest
from fabric.gate.core import Core
from fabric.gate.events import AnyEvent, Submit
from fabric.gate.instructions import Outcome
from fabric.gate.limit_events import SetLimit
from fabric.gate.serving_events import Authorize
from fabric.gate.state import Answered

REMEMBERED_US: Final = 32 * 86_400_000_000
EACH_MAX: Final = 32_768
"""Of one account; beyond, its oldest are forgotten sooner. At the door's own rate that is minutes: longer than anybody tries."""

_ANYWAY: Final = frozenset({"request_id"})
_WHO_ASKS: Final[dict[type[msgspec.Struct], frozenset[str]]] = {
    Authorize: _ANYWAY | {"key_id"},
    CreateKey: _ANYWAY | {"made_with"},
    SetLimit: _ANYWAY | {"made_with"},
    Submit: _ANYWAY | {"key_id"},
}
"""Fields that say with which of its keys an account asks: with another one it asks for the same."""


def digest_of(event: AnyEvent) -> bytes:
    """What was asked: the same for the same content, in the next version too, and whichever of its keys the account asks with."""
    return digest(event, but=_WHO_ASKS.get(type(event), _ANYWAY))


def recall(core: Core, name: str, *, now_us: int) -> Answered | None:
    """What was answered to it, if that is remembered."""
    found = core.state.answered.get(name)
    return found if found is not None and now_us - found.at_us < REMEMBERED_US else None


def remember(core: Core, name: str, event: AnyEvent, *, outcome: Outcome) -> None:
    """Remember an answer from now on, under its account's id and the request's, and forget those that are old enough."""
    if core.now_us >= core.answers_until_us:
        _forget_old(core)
    asked = digest(event, but=_WHO_ASKS.get(type(event), _ANYWAY))
    core.state.answered[name] = Answered(asked, outcome, core.now_us)
    account_id = _account_of(name)
    own = core.answers_of.get(account_id)
    if own is None:
        own = core.answers_of[account_id] = deque()
    own.append(name)
    if len(own) > EACH_MAX:
        _forget_oldest(core, account_id)


def index(core: Core) -> None:
    """Which answers are whose, oldest first. Those from before answers had a time count from when the state was made."""
    for name, each in core.state.answered.items():
        if not each.at_us:
            core.state.answered[name] = Answered(each.digest, each.outcome, core.state.now_us)
        core.answers_of.setdefault(_account_of(name), deque()).append(name)


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
        _forget_oldest(core, _account_of(oldest))  # and so its account's oldest


def _forget_oldest(core: Core, account_id: str) -> None:
    own = core.answers_of[account_id]
    del core.state.answered[own.popleft()]
    if not own:
        del core.answers_of[account_id]


def _account_of(name: str) -> str:
    return name.partition("/")[0]
