"""The meter's book: which completion tokens of which call are paid for, and what the ledger has to be asked.

Pure: time is a parameter, and what the ledger should hear comes out as `Ask`s, whose answers go in again. One replica
has one `Metering`. What it promises, at every instant: what its calls can be charged is within what is held for them;
a call is charged once, for what the engine produced and never for more; what is not used goes back.
"""

from typing import Final

from fabric.errors import Conflict
from serving.calls import Call, Ended, Granted, Usage, Wanted
from serving.metering import packages, promises
from serving.metering.reports import RefusedCalls, first_report, unreported
from serving.metering.slices import Ask, Charge, OpenCall, Payer, Short, Slice, Terms, size_uhs, worst_uhs

_FOR_EVER_US: Final = 2**62
_QUIET_US: Final = 1_000_000
"""An account that gave less than was asked for isn't asked again before this, unless a call waits for it."""


class Metering:
    """The slices and open calls of one replica, which serves one model on one kind of accelerator.

    Args:
        name: unique for ever (replica and start): hold ids begin with it.
    """

    def __init__(
        self,
        *,
        name: str,
        model: str,
        accelerator: str,
        charge: Charge,
        terms: Terms | None = None,
        rate_version: int = 0,
    ) -> None:
        self.name, self.model, self.accelerator = name, model, accelerator
        self._charges = {rate_version: charge}
        self.rate_version = rate_version
        self.terms = terms or Terms()
        self.calls: dict[str, OpenCall] = {}
        self._slices: dict[Payer, Slice] = {}
        self._leaving: dict[str, Slice] = {}
        """Slices not spent from any more, by hold id, until they are settled."""
        self._refused = RefusedCalls(self.terms)
        self._count = 0

    @property
    def charge(self) -> Charge:
        """What calls that begin now are charged by."""
        return self._charges[self.rate_version]

    def reprice(self, charge: Charge, *, rate_version: int) -> None:
        """Other rates for calls that begin from now on; those that are open keep theirs."""
        self._charges[rate_version] = charge
        self.rate_version = rate_version

    # -- calls ---------------------------------------------------------------------------------------------------------

    def open(
        self, call_id: str, *, payer: Payer, key_id: str, prompt_tokens: int, wants: int, now_us: int
    ) -> OpenCall | Short:
        """Admit a call whose prompt is covered, and one completion token where it wants any.

        Raises:
            Conflict: a call of this id is open.
        """
        if call_id in self.calls:
            raise Conflict(f"call {call_id} is running already: give every call an id of its own", call=call_id)
        piece, margin_us = self._slice(payer, now_us), self.terms.margin_us
        least = min(1, wants)
        limits, prompt, completion = packages.promise(
            (), piece.packages(now_us, margin_us), prompt=prompt_tokens, completion=least
        )
        need = 0 if payer.covered else worst_uhs(self.charge, prompt, completion)
        room = piece.available_uhs(now_us, margin_us)
        if piece.until_us == 0 or (room < need and (need or not limits)):
            return Short(need - room, max(0, room), piece.within_key, prompt, completion)
        call = OpenCall(
            call_id,
            payer,
            key_id,
            Usage(prompt_tokens),
            wants,
            least,
            need,
            now_us,
            piece,
            self.rate_version,
            self.charge,
        )
        packages.bind(piece, call, limits)
        piece.bound_uhs += need
        piece.open_calls += 1
        piece.used_at_us = now_us
        self.calls[call_id] = call
        promises.extend(call, now_us=now_us, terms=self.terms)
        return call

    def advance(self, call_id: str, *, completion: int, cached: int, reasoning: int = 0, now_us: int) -> int:
        """Note what the engine produced in all; how many of its completion tokens are paid for. Fewer than
        `completion`: ask (`need`), then try again, or end the call there.
        """
        call = self.calls[call_id]
        if completion > call.paid - self.terms.grant_tokens // 2 and call.paid < call.wants:
            promises.extend(call, now_us=now_us, terms=self.terms, used=completion)
        kept = min(completion, call.paid)
        call.usage = Usage(call.usage.prompt_tokens, cached, kept, min(reasoning, kept))
        return call.paid

    def close(self, call_id: str, *, ended: Ended, now_us: int) -> Call:
        """End a call: what it used is spent, what it had beside is free again. Its charge is `charge_of`."""
        call, terms = self.calls.pop(call_id), self.terms
        piece = call.piece
        done = self.told(call, ended, at_us=max(now_us, call.started_at_us))
        done = packages.ended(piece, call, done, now_us=now_us, terms=terms)
        charged = self.charge_of(done)
        piece.bound_uhs -= call.bound_uhs
        piece.spent_uhs += charged
        piece.open_calls -= 1
        piece.used_at_us = now_us
        if not piece.ended:
            piece.report_since_us = now_us
        piece.ended.append(done)
        piece.burn(charged, now_us, terms.horizon_us)
        return done

    def told(self, call: OpenCall, ended: str, *, at_us: int) -> Call:
        """A call as it would be recorded if it had ended so."""
        return promises.told(call, ended, model=self.model, accelerator=self.accelerator, at_us=at_us)

    def abandon(self, call_id: str) -> None:
        """Undo `open`: the call never began."""
        call = self.calls.pop(call_id)
        packages.bind(call.piece, call, ())
        call.piece.bound_uhs -= call.bound_uhs
        call.piece.open_calls -= 1

    def void(self, call_id: str) -> None:
        """The engine took the call and did nothing for it: it is recorded, and costs nothing."""
        self.calls[call_id].usage = Usage(0)

    def left_uhs(self, payer: Payer) -> int | None:
        """What a payer can still spend: what was free at the ledger's last answer, and what is held and not promised to a
        call. None where the ledger said nothing of it.
        """
        piece = self._slices.get(payer)
        if piece is None or piece.free_uhs is None or payer.covered:
            return None
        return piece.free_uhs + piece.held_uhs - piece.spent_uhs - piece.bound_uhs

    def charge_of(self, call: Call) -> int:
        """What the call costs, in µHs."""
        return 0 if call.covered else self._charges.get(call.rate_version, self.charge)(packages.rest_of(call))

    # -- the ledger ----------------------------------------------------------------------------------------------------

    def need(self, payer: Payer, short: Short, now_us: int) -> Ask:
        """The message that gets a waiting call in; the one under way where there is one, whose answer is awaited."""
        piece = self._slice(payer, now_us)
        need, whole = short.need_uhs, (short.prompt_tokens, short.completion_tokens)
        return piece.asked or self._more(piece, need, need, now_us=now_us, whole=whole, least=whole)

    def need_more(self, call_id: str, *, completion: int, now_us: int) -> Ask | None:
        """The message that lets an open call go on; None where its hold is about to end: nothing more can be paid."""
        call = self.calls[call_id]
        piece = call.piece
        if piece.asked is not None:
            return piece.asked
        if now_us >= piece.until_us - self.terms.margin_us:
            return None
        one, all_of_it, whole = promises.lacks(call, completion=completion, now_us=now_us, terms=self.terms)
        return self._more(piece, all_of_it, one, now_us=now_us, whole=whole, least=(0, 1))

    def due(self, now_us: int) -> list[Ask]:
        """What should be said now unasked: renewals, reports, and slices that are given back."""
        for piece in list(self._slices.values()):
            if piece.until_us and piece.asked is None and self._is_over(piece, now_us):
                self._retire(piece)
        pieces = [*self._slices.values(), *self._leaving.values()]
        asks = [ask for piece in pieces if piece.asked is None and (ask := self._due(piece, now_us))]
        return asks + self._refused.due(now_us)

    def leave(self, now_us: int) -> list[Ask]:
        """Give back every slice: the replica ends. Those with open calls follow as `due` when these have ended."""
        for piece in list(self._slices.values()):
            self._retire(piece)
        return self.due(now_us)

    def recover(self, ask: Ask) -> None:
        """Take over what an earlier process left: a hold, and calls of it that were never reported, or never answered."""
        used_uhs = sum(map(self.charge_of, ask.calls))
        piece = Slice(ask.payer, ask.hold_id, held_uhs=used_uhs, spent_uhs=used_uhs, seq=ask.seq - 1)
        piece.until_us, piece.ended = 1, list(ask.calls)
        self._leaving[ask.hold_id] = piece

    def granted(self, ask: Ask, answer: Granted, *, now_us: int) -> None:
        """The ledger did as asked."""
        if ask.kind == "keep":
            self._refused.kept(ask)
            return
        piece = self._answered(ask)
        if piece is None:
            return
        if ask.calls:
            piece.report_calls_max = None
        if ask.kind == "settle" or (ask.kind == "record" and piece.open_calls == 0 and not piece.ended):
            self._leaving.pop(ask.hold_id, None)
        if ask.kind in {"settle", "record"}:
            return
        captured = sum(map(self.charge_of, ask.calls))
        piece.spent_uhs -= captured
        grew = answer.held_uhs - (piece.held_uhs - captured)
        piece.held_uhs = answer.held_uhs
        has_more = packages.told(piece, answer.packages, reported=ask.calls)
        piece.final = answer.final or (grew < ask.minimum_uhs and not has_more)
        piece.free_uhs, piece.within_key = answer.free_uhs, answer.within_key
        piece.until_us = ask.asked_at_us + self.terms.ttl_us
        if ask.amount_uhs and piece.final:
            piece.quiet_until_us = now_us + _QUIET_US

    def refused(self, ask: Ask, *, gone: bool = False, now_us: int, code: str = "", reason: str = "") -> None:
        """The ledger would not: the account has too little; or, with `gone`, the hold is no more (it ran out).

        Use that was reported is never given up: a report that can't be taken is halved until the call at fault is alone,
        and that one is to be kept as open by the ledger.
        """
        if ask.kind == "keep":
            self._refused.again(ask, now_us)
            return
        piece = self._answered(ask)
        if piece is None:
            return
        if ask.kind == "authorize":
            assert piece.open_calls == 0, "nothing is opened on a hold that was never granted"
            self._leaving.pop(piece.hold_id, None)
            if self._slices.get(piece.payer) is piece:
                del self._slices[piece.payer]
            return
        at_fault = gone and bool(ask.calls) and (ask.kind != "update" or piece.hold_id in self._leaving)
        if at_fault and len(ask.calls) == 1:
            self._keep(piece, ask, code, reason)
        else:
            piece.ended[:0] = ask.calls
            piece.report_calls_max = len(ask.calls) // 2 if at_fault else piece.report_calls_max
        piece.final = True
        piece.quiet_until_us = now_us + _QUIET_US
        if gone:
            piece.until_us = min(piece.until_us, now_us)
            self._retire(piece)

    def is_final(self, ask: Ask) -> bool:
        """Whether the account had no more to give, by the last answer about this hold."""
        piece = self._slices.get(ask.payer)
        if piece is None or piece.hold_id != ask.hold_id:
            piece = self._leaving.get(ask.hold_id)
        return piece is None or piece.final

    def knows(self, hold_id: str) -> bool:
        """Whether anything is still to be said of this hold."""
        return hold_id in self._leaving or any(piece.hold_id == hold_id for piece in self._slices.values())

    def unsettled(self) -> bool:
        """Whether the ledger has still to hear of anything."""
        return bool(self._slices or self._leaving or self._refused)

    def unreported(self, now_us: int) -> int:
        """Ended calls that should have been reported long since: refused, or asked of a ledger that doesn't answer."""
        pieces = [*self._slices.values(), *self._leaving.values()]
        return len(self._refused) + unreported(pieces, now_us)

    def exposure_uhs(self) -> tuple[int, int]:
        """(what calls may be charged that the ledger has not captured, what it holds for them), over all slices."""
        pieces = [*self._slices.values(), *self._leaving.values()]
        return sum(p.bound_uhs + p.spent_uhs for p in pieces), sum(p.held_uhs for p in pieces)

    def _is_over(self, piece: Slice, now_us: int) -> bool:
        idle = piece.open_calls == 0 and now_us - piece.used_at_us >= self.terms.idle_us
        return idle or now_us >= piece.until_us - self.terms.margin_us

    def _due(self, piece: Slice, now_us: int) -> Ask | None:
        terms = self.terms
        if piece.hold_id in self._leaving and piece.open_calls == 0:
            return self._settle(piece, now_us)
        if piece.until_us == 0 or now_us >= piece.until_us - terms.margin_us:
            return None
        is_ample = packages.reach(piece, now_us, terms) > packages.size(piece, now_us, terms) // terms.renew_part
        if not piece.payer.covered and piece.open_calls and now_us >= piece.quiet_until_us and not is_ample:
            if packages.has_more(piece):
                return self._more(piece, now_us=now_us)
            size = size_uhs(piece, need_uhs=0, unit_uhs=self._unit_uhs(), now_us=now_us, terms=terms)
            if piece.available_uhs(now_us, terms.margin_us) * terms.renew_part < size:
                return self._more(piece, now_us=now_us)
        stale = bool(piece.ended) and now_us - piece.report_since_us >= terms.report_us
        stale = stale or len(piece.ended) >= terms.report_calls
        old = now_us >= piece.until_us - terms.ttl_us // 2
        return self._update(piece, now_us) if stale or old else None

    def _more(
        self,
        piece: Slice,
        need_uhs: int = 0,
        least_uhs: int = 0,
        *,
        now_us: int,
        whole: tuple[int, int] = (0, 0),
        least: tuple[int, int] = (0, 0),
    ) -> Ask:
        """Ask for compute tokens, and for as many LLM tokens of packages: `whole` of them, and some for what comes soon."""
        size = size_uhs(piece, need_uhs=need_uhs, unit_uhs=self._unit_uhs(), now_us=now_us, terms=self.terms)
        room = max(0, piece.available_uhs(now_us, self.terms.margin_us))
        more = 0 if piece.payer.covered else max(need_uhs, size - room)
        minimum = min(max(least_uhs, 0), more)
        soon = packages.size(piece, now_us, self.terms)
        wanted = Wanted(whole[0], whole[1] + soon, *least, self.rate_version)
        if piece.until_us:
            return self._update(piece, now_us, more_uhs=more, minimum_uhs=minimum, wanted=wanted)
        authorize = Ask("authorize", piece.hold_id, piece.payer, 0, (), more, minimum, now_us, wanted=wanted)
        return self._ask(piece, authorize)

    def _update(
        self, piece: Slice, now_us: int, *, more_uhs: int = 0, minimum_uhs: int = 0, wanted: Wanted | None = None
    ) -> Ask:
        piece.seq += 1
        calls = self._report(piece)
        if piece.payer.covered:
            return self._ask(piece, Ask("record", piece.hold_id, piece.payer, piece.seq, calls, asked_at_us=now_us))
        return self._ask(
            piece,
            Ask("update", piece.hold_id, piece.payer, piece.seq, calls, more_uhs, minimum_uhs, now_us, wanted=wanted),
        )

    def _settle(self, piece: Slice, now_us: int) -> Ask:
        if piece.payer.covered or len(piece.ended) > len(self._first_report(piece)):
            return self._update(piece, now_us)
        piece.seq += 1
        calls = self._report(piece)
        return self._ask(piece, Ask("settle", piece.hold_id, piece.payer, piece.seq, calls, asked_at_us=now_us))

    def _report(self, piece: Slice) -> tuple[Call, ...]:
        """What the next message says: no more than the ledger takes. The rest follows."""
        calls = self._first_report(piece)
        del piece.ended[: len(calls)]
        return calls

    def _first_report(self, piece: Slice) -> tuple[Call, ...]:
        calls_max = piece.report_calls_max or self.terms.report_calls
        return first_report(piece.ended, calls_max=calls_max, bytes_max=self.terms.report_bytes)

    def _keep(self, piece: Slice, ask: Ask, code: str, reason: str) -> None:
        """Refused by itself, a call's charge is no longer its slice's."""
        charged_uhs = self.charge_of(ask.calls[0])
        piece.spent_uhs -= charged_uhs
        piece.held_uhs -= charged_uhs
        packages.forget(piece, ask.calls)
        piece.report_calls_max = None
        self._refused.add(ask, code=code, reason=reason)

    def _ask(self, piece: Slice, ask: Ask) -> Ask:
        piece.asked = ask
        return ask

    def _answered(self, ask: Ask) -> Slice | None:
        """The slice that asked this, which may ask again; None for an answer that came twice."""
        piece = self._slices.get(ask.payer)
        if piece is None or piece.hold_id != ask.hold_id:
            piece = self._leaving.get(ask.hold_id)
        if piece is None or piece.asked != ask:
            return None
        piece.asked = None
        return piece

    def _slice(self, payer: Payer, now_us: int) -> Slice:
        piece = self._slices.get(payer)
        if piece is not None and piece.until_us and now_us >= piece.until_us - self.terms.margin_us:
            self._retire(piece)
            piece = None
        if piece is None:
            self._count += 1
            piece = self._slices[payer] = Slice(payer, f"{self.name}/{self._count}", used_at_us=now_us)
            if payer.covered:  # there is no hold that could end
                piece.until_us = _FOR_EVER_US
        return piece

    def _retire(self, piece: Slice) -> None:
        """Take no new call from this slice; it is settled when its last has ended."""
        if self._slices.get(piece.payer) is piece:
            del self._slices[piece.payer]
        if piece.asked or (piece.until_us and not (piece.payer.covered and not piece.ended and piece.open_calls == 0)):
            self._leaving[piece.hold_id] = piece

    def _unit_uhs(self) -> int:
        """A few grants, for an account that has not burned anything yet."""
        return self.charge(Usage(0, 0, 4 * self.terms.grant_tokens)) + 1
