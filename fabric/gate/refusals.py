"""Every no the gate says: a stable code, the HTTP status it becomes, and a sentence with the number, the limit, the remedy."""

from typing import Final

from fabric.gate.instructions import Refusal
from fabric.ledger import Refused
from fabric.units import AMOUNT_UHS_MAX, INT64_MAX, UHS_PER_CT, format_ct


def insufficient_tokens(
    *, needed_uhs: int, free_uhs: int, out_of_scope_uhs: int = 0, barred_uhs: int = 0, remedy: str = ""
) -> Refusal:
    """The account does not cover a hold. Needs are shown rounded up and what is free rounded down, so that following
    the advice to the letter works. What a subscription's overflow policy bars is said apart: a top-up would not help.
    """
    short_uhs = needed_uhs - free_uhs
    needed, free = format_ct(needed_uhs, round_up=True), format_ct(free_uhs)
    short = format_ct(short_uhs, round_up=True)
    elsewhere = f" ({format_ct(out_of_scope_uhs)} more are bound to other uses)" if out_of_scope_uhs else ""
    barred = f" ({format_ct(barred_uhs)} more are barred by the subscription's overflow policy)" if barred_uhs else ""
    way_out = "wait for the next cycle, change the subscription" if barred_uhs else f"top up {short}"
    lower = f" or lower {remedy} to {free}" if remedy and free_uhs >= UHS_PER_CT // 10_000 else ""
    return Refusal(
        code="insufficient_tokens",
        http_status=402,
        message=f"needs {needed} tokens, {free} free{elsewhere}{barred}: {way_out}{lower}",
        facts={
            "needed_uhs": needed_uhs,
            "free_uhs": free_uhs,
            "short_uhs": short_uhs,
            "free_out_of_scope_uhs": out_of_scope_uhs,
            **({"barred_uhs": barred_uhs} if barred_uhs else {}),
        },
    )


def from_ledger(refused: Refused, *, remedy: str = "") -> Refusal:
    """A refusal of the ledger in the gate's words."""
    facts = refused.facts
    match refused.code:
        case "insufficient_tokens":
            return insufficient_tokens(
                needed_uhs=int(facts["needed_uhs"] or 0),
                free_uhs=int(facts["free_uhs"] or 0),
                out_of_scope_uhs=int(facts["free_out_of_scope_uhs"] or 0),
                barred_uhs=int(facts.get("barred_uhs") or 0),
                remedy=remedy,
            )
        case "unknown_account":
            return not_found("account", str(facts["account_id"]))
        case "unknown_hold":
            return not_found("hold", str(facts["hold_id"]))
        case "hold_exists" | "hold_ended" | "stale_seq" | "lot_exists" | "account_exists" | "period_closed":
            said = ", ".join(f"{name} {value}" for name, value in facts.items())
            return conflict(f"{refused.code.replace('_', ' ')}: {said}", code=refused.code, **facts)
        case _:
            said = ", ".join(f"{name} = {value}" for name, value in facts.items())
            return invalid(f"{refused.code.replace('_', ' ')}: {said}", code=refused.code, **facts)


def unavailable(message: str, *, code: str) -> Refusal:
    """Not now: asked again later, the answer may be another."""
    return Refusal(code=code, http_status=503, message=message)


def key_limit_reached(*, needed_uhs: int, left_uhs: int, limit_uhs: int) -> Refusal:
    return Refusal(
        code="key_limit_reached",
        http_status=402,
        message=(
            f"needs {format_ct(needed_uhs, round_up=True)} tokens, but this key has {format_ct(left_uhs)} left of its limit"
            f" of {format_ct(limit_uhs)}: lower tokens= or use a key with a higher limit"
        ),
        facts={"needed_uhs": needed_uhs, "left_uhs": left_uhs, "limit_uhs": limit_uhs},
    )


def bad_amount(what: str, amount_uhs: int) -> Refusal | None:
    """None for an amount of tokens that makes sense; `what` begins the sentence, such as "a top-up is"."""
    if 0 < amount_uhs <= AMOUNT_UHS_MAX:
        return None
    given = format_ct(min(amount_uhs, INT64_MAX)) + (" or more" if amount_uhs > INT64_MAX else "")
    return invalid(
        f"{what} more than 0 and at most {format_ct(AMOUNT_UHS_MAX)} tokens, not {given}",
        code="invalid_amount",
        amount_uhs=max(-INT64_MAX, min(amount_uhs, INT64_MAX)),
        limit_uhs=AMOUNT_UHS_MAX,
    )


def beyond_int64() -> Refusal:
    return invalid(f"an amount is beyond 64 bits: use at most {INT64_MAX}", code="beyond_int64", limit=INT64_MAX)


def not_configured() -> Refusal:
    return Refusal(
        code="not_configured",
        http_status=503,
        message="the gate has no prices yet: configure it, then try again",
    )


def unusable_key(why: str, key_id: str, remedy: str) -> Refusal:
    return Refusal(
        code=f"key_{why}", http_status=401, message=f"key {key_id!r} is {why}: {remedy}", facts={"key_id": key_id}
    )


_DEAD: Final = {
    "revoked": "key {0!r} is revoked: use another one",
    "account_closed": "key {0!r} is of an account that is closed: ask the operator for another one",
    "member_left": "key {0!r} is of a member who has left: use one of your own",
    "project_closed": "key {0!r} is of a project that is closed: use one of another project",
}


def dead_key(why: str, key_id: str) -> Refusal:
    """A key that will never count again, by the code of why (`keys.dead`)."""
    code = "key_revoked" if why == "revoked" else why
    return Refusal(code=code, http_status=401, message=_DEAD[why].format(key_id), facts={"key_id": key_id})


def not_paid() -> Refusal:
    return Refusal(
        code="operator_only",
        http_status=403,
        message="nothing is booked here before it is paid: pay the operator, who books it with the payment's reference",
    )


def restricted_key(message: str, key_id: str) -> Refusal:
    """The key counts, but not for this."""
    return Refusal(code="restricted_key", http_status=403, message=message, facts={"key_id": key_id})


def forbidden(message: str, *, code: str, **facts: str | int | bool | None) -> Refusal:
    """Whoever asks has no right to that, and knows now who has."""
    return Refusal(code=code, http_status=403, message=message, facts=facts)


def not_found(what: str, name: str) -> Refusal:
    return Refusal(code="not_found", http_status=404, message=f"there is no {what} {name!r}", facts={what: name})


def invalid(message: str, *, code: str = "invalid_request", **facts: str | int | bool | None) -> Refusal:
    return Refusal(code=code, http_status=400, message=message, facts=facts)


def conflict(message: str, *, code: str = "conflict", **facts: str | int | bool | None) -> Refusal:
    return Refusal(code=code, http_status=409, message=message, facts=facts)


def unknown_accelerator(given: str, known: tuple[str, ...]) -> Refusal:
    types = ", ".join(known) or "none yet"
    return invalid(
        f"there is no accelerator {given!r} here: choose of {types}, or 'any'",
        code="unknown_accelerator",
        given=given,
        known=types,
    )
