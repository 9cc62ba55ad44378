"""The sentence that says why a job is where it is, made of what the gate knows of it.

It says what the job waits for, where it stands, and what would let it start; of an eviction for whom and why that one.
"""

from collections.abc import Iterable
from typing import Final

from fabric.gate.limit_texts import moment
from fabric.gate.periods import IN_UTC
from fabric.gate.views import EvictionView, WhyView
from fabric.placement.quota_terms import Used
from fabric.placement.score import TERMS
from fabric.placement.why import Remedy, Room, Waits
from fabric.units import format_fraction

CLASSES: Final = ("inference", "Enterprise", "Professional", "Starter", "batch")
"""The classes of service, best first."""
WITHHELD: Final = {
    "headroom": "kept free for inference",
    "inference_waits": "not lent while inference waits",
    "owner_waits": "not lent while their owner waits",
    "quota": "kept free for an account's quota",
    "reserved": "reserved for a job that has waited longer",
}
SIMPLY: Final = {
    "queued": "It waits until nothing of its last attempt is left on its devices.",
    "starting": "It has its devices, and is started on them.",
    "running": "It runs.",
}
GOES_ON: Final = {
    "limit_reached": "a higher limit (`fabric raise-limit`)",
    "out_of_tokens": "a top-up (`fabric top-up`)",
    "tokens_expired": "a top-up (`fabric top-up`)",
    "spending_limit": "a higher limit of its key or account, or less held under it (`fabric keys limits`)",
}
"""Of a parked job, by its reason: what lets it go on."""
_US_PER_HOUR: Final = 3_600_000_000


def sentence(view: WhyView) -> str:
    """One sentence, and one more where an eviction is to be told."""
    said = _state(view)
    told = _evictions(view)
    return f"{said}{_place(view)} {told}".strip()


def _place(view: WhyView) -> str:
    """What the place of a job with a wish was chosen by."""
    chosen = view.because
    if chosen is None:
        return ""
    terms = ", ".join(f"{name} {_token_seconds(us)}" for name in TERMS if (us := getattr(chosen.score, name)))
    other = chosen.other_score
    than = (
        "nothing else had room"
        if other is None
        else f"on {chosen.other}, the next best with room, {_token_seconds(other.total)}"
    )
    return f" It was placed on {chosen.group} because it comes to {_token_seconds(chosen.score.total)} token-seconds there ({terms}); {than}."


def _token_seconds(uhs: int) -> str:
    return f"{uhs / 1_000_000:,.4g}"


def _state(view: WhyView) -> str:
    if view.waits is not None:
        return _waiting(view, view.waits)
    if view.again_us is not None:
        return _set_back(view, view.again_us)
    if view.state in SIMPLY:
        return SIMPLY[view.state]
    if view.state == "stopping":
        rest = "" if view.until_us is None else f", for which it has {span(view.until_us - view.now_us)}"
        return f"It was asked to save and leave ({_plain(view.reason)}){rest}."
    if view.state == "parked":
        way_out = GOES_ON.get(view.reason, "`fabric resume`")
        return f"It is parked ({_plain(view.reason)}): {way_out} lets it go on."
    why = view.reason or view.error
    return f"It has ended: {view.state}{f' ({_plain(why)})' if why and why != view.state else ''}."


def _set_back(view: WhyView, again_us: int) -> str:
    if view.state == "parked":
        return (
            f"It is parked ({_plain(view.reason)}): a limit of its key or account leaves too few tokens until"
            f" {moment(again_us, IN_UTC)}, in {span(again_us - view.now_us)}; then it goes on, or at once where the limit is"
            " raised (`fabric keys limits`)."
        )
    why = f" ({_plain(view.reason)})" if view.reason else ""
    again = f"it is tried again in {span(again_us - view.now_us)}, or at once with `fabric resume`"
    return f"Its last {view.setbacks} attempts came to nothing{why}: {again}."


def _waiting(view: WhyView, waits: Waits) -> str:
    return f"{_what_for(view, waits)}{_likely(view)}"


def _likely(view: WhyView) -> str:
    starts = view.starts
    if starts is None:
        return ""
    return f" Half of such jobs start within {span(starts.p50_us)} from here, nine of ten within {span(starts.p90_us)}."


def _what_for(view: WhyView, waits: Waits) -> str:  # noqa: PLR0911 - a case each
    match waits.code:
        case "leaving":
            by = f" by {', '.join(named)}" if (named := [job_id for job_id in waits.leaving if job_id]) else ""
            at = view.leaving_until_us
            most = "" if at is None else f", in {span(at - view.now_us)} at most"
            return f"It starts as soon as {_devices(waits.owed)} that were evicted for it are left{by}{most}."
        case "nowhere":
            return f"It waits for a node: none that may take {_gang(view, waits)} is up.{_remedies(waits)}"
        case "warmth":
            rest = span((waits.until_us or view.now_us) - view.now_us)
            return f"It waits up to {rest} for a node where its data lie already; then it takes any."
        case "reserved":
            return f"Its {_gang(view, waits)} are collected for it: {_short(waits)}; others use them only until then."
        case "quota":
            return f"It waits for quota: {'; '.join(map(_quota, waits.quotas))}.{_remedies(waits)}"
        case "line":
            return f"It waits for its turn: {_ahead(waits)}.{_latest(view, waits)}"
        case _:
            return f"It waits for {_gang(view, waits)}: {_short(waits)}, and {_ahead(waits)}.{_latest(view, waits)}{_remedies(waits)}"


def _gang(view: WhyView, waits: Waits) -> str:
    kind = " or ".join(view.accelerators) if view.accelerators else "any type"
    each = "" if waits.each is None else f", {waits.each} on a node"
    return f"{format_fraction(waits.fraction) or waits.needs} \u00d7 {kind}{each}"


def _short(waits: Waits) -> str:
    if not waits.rooms:
        return "no node may take it"
    rooms = "; ".join(_room(room) for room in waits.rooms)
    if waits.fraction is not None:
        return f"{rooms}, so {format_fraction(waits.fraction)} of one must come free"
    if waits.short:
        return f"{rooms}, so {waits.short} more must come free"
    return f"{rooms}, and they lie on too many nodes" if not all(room.withheld for room in waits.rooms) else rooms


def _room(room: Room) -> str:
    withheld = f" but {WITHHELD.get(room.withheld, room.withheld)}" if room.withheld else ""
    part = f", and at most {format_fraction(room.most_part)} of one that is divided" if room.most_part else ""
    return f"{room.free} of {room.devices} {room.pool} {room.accelerator} are free{part}{withheld}"


def _quota(used: Used) -> str:
    quota = used.quota
    of = f"cohort {quota.cohort}" if quota.cohort else "its account"
    within = f"{min(used.shared, used.nominal)} of {used.nominal} {quota.accelerator} of {of} are used"
    return within if quota.borrow_max is None else f"{within}, and {used.borrowed} of {quota.borrow_max} borrowed"


def _ahead(waits: Waits) -> str:
    if not waits.ahead:
        return "nobody is ahead of it"
    parts = (
        (waits.better, "of a better class"),
        (waits.poorer, "of customers who have used less of their share"),
        (waits.own, "of your own"),
    )
    named = ", ".join(f"{count} {what}" for count, what in parts if count)
    ahead = f"{waits.ahead} {_plural(waits.ahead, 'job goes', 'jobs go')} before it"
    return f"{ahead} ({named})" if named else ahead


def _latest(view: WhyView, waits: Waits) -> str:
    if waits.until_us is None:
        return ""
    return f" Devices are reserved for it in {span(waits.until_us - view.now_us)} at the latest."


def _remedies(waits: Waits) -> str:
    said = [_remedy(each) for each in waits.remedies]
    return f" It could start now with {' or '.join(said)}." if said else ""


def _remedy(remedy: Remedy) -> str:
    match remedy.code:
        case "accelerator":
            return f"{remedy.accelerator} (--accelerator)"
        case "preemptible":
            return "leave to be evicted (without --no-preemptible)"
        case "grace":
            return f"a grace of {span(remedy.amount)} (--grace)"
        case "devices":
            return _devices(remedy.amount)
        case _:
            return "devices on any nodes (without --devices-per-node)"


def _evictions(view: WhyView) -> str:
    """Of the newest eviction, if it has one: for whom, or of whom, and why that one."""
    mine = [each for each in view.evictions if each.job_id == view.job_id]
    others = [each for each in view.evictions if each.for_job_id == view.job_id]
    said = ""
    if mine and view.state in ("queued", "stopping"):
        newest = mine[-1]
        said = f"{span(view.now_us - newest.at_us)} ago it made room for {_who(newest)}: {_choice(newest)}."
    if others and view.state in ("queued", "starting", "running"):
        named = [each.job_id for each in others if each.job_id]
        count = len(others)
        what = ", ".join(named) if len(named) == count else f"{count} {_plural(count, 'job', 'jobs')} of a lower class"
        said += f" For it, {what} {_plural(count, 'was', 'were')} evicted: {_choice(_dearest(others))}."
    return said.strip()


def _who(eviction: EvictionView) -> str:
    if eviction.for_job_id:
        return f"job {eviction.for_job_id}"
    return f"a job of the class {CLASSES[eviction.rank]}"


def _choice(eviction: EvictionView) -> str:
    why = {
        "reclaimed": "its devices were lent and are wanted back",
        "quota": "it ran on devices that were borrowed, and their owner's quota wants them back",
        "backfill": "it ran on devices that were reserved for a job that had waited longer",
    }.get(eviction.why, "a better class goes first")
    lost = f"{eviction.loss_us * 100 // _US_PER_HOUR / 100:g} device-hours"
    if eviction.among > 1:
        return (
            f"{why}, and of {eviction.among} that could have been asked it had least to lose for its devices ({lost})"
        )
    return f"{why}, and it alone could be asked ({lost} to lose)"


def _dearest(evictions: Iterable[EvictionView]) -> EvictionView:
    return max(evictions, key=lambda each: each.loss_us)


def span(us: int) -> str:
    """A duration for people: its two largest parts."""
    seconds = max(us, 0) // 1_000_000
    parts = [(seconds // 86_400, "d"), (seconds // 3_600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{count} {unit}" for at, (count, unit) in enumerate(parts[:2]) if count or not at)


def _devices(count: int) -> str:
    return f"{count} {_plural(count, 'device', 'devices')}"


def _plural(count: int, one: str, more: str) -> str:
    return one if count == 1 else more


def _plain(reason: str) -> str:
    return reason.replace("_", " ")
