"""What open calls are promised of their slice: packages of LLM tokens first, compute tokens for the rest.

Pure. A call goes on as far as what it may come to at worst is bound to it, and no further.
"""

from serving.calls import Call
from serving.metering import packages
from serving.metering.slices import OpenCall, Terms, affordable, worst_uhs


def extend(call: OpenCall, *, now_us: int, terms: Terms, used: int = 0) -> None:
    """Pay for more of a call, which has used so much of its completion, from what its slice has available."""
    grant, piece = terms.grant_tokens, call.piece
    if piece.final:  # little is left for all: each takes what it soon needs
        grant = max(1, grant // 8)
    aim = min(call.wants, used + grant)
    if aim <= call.paid:
        return
    if call.payer.covered:
        call.paid = aim
        return
    room = piece.available_uhs(now_us, terms.margin_us)
    available = piece.packages(now_us, terms.margin_us)
    limits, prompt, rest = packages.promise(call.limits, available, prompt=call.usage.prompt_tokens, completion=aim)
    free = aim - rest  # of the completion packages pay for so much
    if room <= 0 and limits == call.limits and free <= call.paid:
        return
    least, budget_uhs = max(0, call.paid - free), call.bound_uhs + max(0, room)
    paid = affordable(call.charge, prompt, least=least, most=rest, budget_uhs=budget_uhs)
    bound = worst_uhs(call.charge, prompt, paid)
    bound = bound if limits else max(call.bound_uhs, bound)
    packages.bind(piece, call, limits)
    piece.bound_uhs += bound - call.bound_uhs
    call.paid, call.bound_uhs = free + paid, bound


def lacks(call: OpenCall, *, completion: int, now_us: int, terms: Terms) -> tuple[int, int, tuple[int, int]]:
    """The compute tokens that a call lacks for one more token of its completion, and for all that the engine has produced; and
    the tokens of its prompt and completion that no package pays for then.
    """
    room = call.piece.available_uhs(now_us, terms.margin_us)

    def lacking(reach: int) -> tuple[int, tuple[int, int]]:
        prompt = call.usage.prompt_tokens
        rest = packages.uncovered(call.limits, prompt=prompt, completion=min(call.wants, reach))
        return worst_uhs(call.charge, *rest) - call.bound_uhs - room, rest

    one_uhs, _ = lacking(call.paid + 1)
    return one_uhs, *lacking(max(call.paid + 1, completion))


def told(call: OpenCall, ended: str, *, model: str, accelerator: str, at_us: int) -> Call:
    """A call as it is recorded, with all that it was promised."""
    return Call(
        call_id=call.call_id,
        account_id=call.payer.account_id,
        key_id=call.key_id,
        model=model,
        accelerator=accelerator,
        usage=call.usage,
        started_at_us=call.started_at_us,
        ended_at_us=at_us,
        ended=ended,
        covered=call.payer.covered,
        rate_version=call.rate_version,
        packages=call.limits,
        tags=call.tags,
    )
