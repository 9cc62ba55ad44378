"""A stand-in for the ledger: one balance an account, holds, calls that are charged once. Naive on purpose."""

import asyncio
from collections import Counter

from fabric.errors import InsufficientTokens, InvalidRequest, NotFound, Unavailable
from serving.calls import Granted


class LedgerStandIn:
    """Does what `SliceLedger` promises, in memory; every rule is checked at every message."""

    def __init__(self, charge, *, clock=lambda: 0, free_told=True):
        self.charge, self.clock, self.free_told = charge, clock, free_told
        self.charge_of = {}
        """By the model, where one has its own."""
        self.free = Counter()
        self.deposited = Counter()
        self.holds = {}
        self.answers = {}
        self.charged = {}
        self.calls = {}
        self.messages = Counter()
        self.late = Counter()
        """What was reported after its hold had run out: the account may owe it."""
        self.calls_max = 1_000
        self.faulty = set()
        """Calls that it refuses, with whatever is reported beside them."""
        self.open = {}
        """Calls that it could not charge and keeps."""
        self.keeps = True
        self.reachable = True
        self.delay_s = 0.0

    def top_up(self, account_id, uhs):
        self.free[account_id] += uhs
        self.deposited[account_id] += uhs

    def spent(self, account_id):
        return sum(uhs for call_id, uhs in self.charged.items() if self.calls[call_id].account_id == account_id)

    def held(self, account_id):
        return sum(hold["uhs"] for hold in self.holds.values() if hold["account"] == account_id)

    def check(self):
        for account_id, deposited in self.deposited.items():
            assert self.free[account_id] >= -self.late[account_id], "an overdraft"
            assert self.free[account_id] + self.held(account_id) + self.spent(account_id) == deposited

    # -- the same, as plain functions ----------------------------------------------------------------------------------

    def do(self, ask):
        """One message of the meter, as the client would send it."""
        payer = ask.payer
        if ask.kind == "authorize":
            return self.do_authorize(ask.hold_id, payer.account_id, ask.amount_uhs, ask.minimum_uhs, 300_000_000)
        if ask.kind == "update":
            return self.do_update(
                ask.hold_id, payer.account_id, ask.seq, ask.calls, ask.amount_uhs, ask.minimum_uhs, 300_000_000
            )
        if ask.kind == "record":
            return self.do_record(payer.account_id, ask.calls)
        if ask.kind == "keep":
            return self.do_keep(ask.calls[0], ask.code)
        return self.do_settle(ask.hold_id, payer.account_id, ask.seq, ask.calls)

    def expire(self):
        for hold in self.holds.values():
            if hold["uhs"] and hold["until"] <= self.clock():
                self.free[hold["account"]] += hold["uhs"]
                hold["uhs"] = 0
                hold["over"] = True

    def do_authorize(self, hold_id, account_id, amount, minimum, ttl_us):
        self.expire()
        self.messages["authorize"] += 1
        if (hold_id, 0) in self.answers:
            return self.answers[hold_id, 0]
        give = self._give(account_id, amount)
        if give < minimum or (amount and not give):
            raise InsufficientTokens(
                f"{minimum} µHs are needed, {self.free[account_id]} are free", free_uhs=self.free[account_id]
            )
        self.free[account_id] -= give
        self.holds[hold_id] = {"account": account_id, "uhs": give, "until": self.clock() + ttl_us, "over": False}
        return self._answer(hold_id, 0, final=give < amount)

    def do_update(self, hold_id, account_id, seq, calls, more, minimum, ttl_us):
        self.expire()
        self.messages["update"] += 1
        if (hold_id, seq) in self.answers:
            return self.answers[hold_id, seq]
        self._look_at(calls)
        hold = self.holds[hold_id]
        if hold["over"] and not calls:
            raise NotFound(f"hold {hold_id} ended", code="hold_ended")
        if hold["over"]:
            self._capture(hold, calls)
            return self._answer(hold_id, seq, final=True)
        self._capture(hold, calls)
        give = self._give(account_id, more)
        give = 0 if give < minimum else give
        self.free[account_id] -= give
        hold["uhs"] += give
        hold["until"] = self.clock() + ttl_us
        return self._answer(hold_id, seq, final=give < more)

    def do_settle(self, hold_id, account_id, seq, calls):
        self.expire()
        self.messages["settle"] += 1
        if (hold_id, seq) in self.answers or hold_id not in self.holds:
            return
        self._look_at(calls)
        hold = self.holds[hold_id]
        self._capture(hold, calls)
        self.free[account_id] += hold["uhs"]
        hold["uhs"], hold["over"] = 0, True
        self.answers[hold_id, seq] = None
        self.check()
        return

    def do_record(self, account_id, calls):
        self.messages["record"] += 1
        self._look_at(calls)
        for call in calls:
            assert (call.account_id, call.covered) == (account_id, True)
            self.charged.setdefault(call.call_id, 0)
            self.calls.setdefault(call.call_id, call)

    def do_keep(self, call, code):
        self.messages["keep"] += 1
        if not self.keeps:
            raise InvalidRequest("not even that", code="refused")
        assert code, "it says what the report was refused with"
        if call.call_id not in self.charged:
            self.open[call.call_id] = call

    def _look_at(self, calls):
        if len(calls) > self.calls_max:
            raise InvalidRequest(f"{len(calls)} calls: split them", code="too_many_calls")
        if bad := [call.call_id for call in calls if call.call_id in self.faulty and call.call_id not in self.charged]:
            raise InvalidRequest(f"call {bad[0]} can't be right", code="invalid_call")

    def _give(self, account_id, amount):
        return max(0, min(amount, self.free[account_id]))

    def _capture(self, hold, calls):
        for call in calls:
            assert call.account_id == hold["account"]
            if call.call_id in self.charged:
                continue
            uhs = 0 if call.covered else self.charge_of.get(call.model, self.charge)(call.usage)
            self.charged[call.call_id], self.calls[call.call_id] = uhs, call
            from_hold = min(uhs, hold["uhs"])
            hold["uhs"] -= from_hold
            self.free[hold["account"]] -= uhs - from_hold
            assert hold["over"] or uhs == from_hold, "more was charged than was held"
            self.late[hold["account"]] += uhs - from_hold

    def _answer(self, hold_id, seq, *, final):
        hold = self.holds[hold_id]
        free = max(0, self.free[hold["account"]]) if self.free_told else None
        answer = self.answers[hold_id, seq] = Granted(hold["uhs"], final, free)
        self.check()
        return answer

    # -- the protocol --------------------------------------------------------------------------------------------------

    async def authorize(
        self, *, hold_id, account_id, key_id, model, accelerator, amount_uhs, minimum_uhs, ttl_us, wanted=None
    ):
        await self._travel()
        return self.do_authorize(hold_id, account_id, amount_uhs, minimum_uhs, ttl_us)

    async def update(self, *, hold_id, account_id, seq, calls, more_uhs, minimum_uhs, ttl_us, wanted=None):
        await self._travel()
        return self.do_update(hold_id, account_id, seq, calls, more_uhs, minimum_uhs, ttl_us)

    async def settle(self, *, hold_id, account_id, seq, calls):
        await self._travel()
        self.do_settle(hold_id, account_id, seq, calls)

    async def record(self, *, account_id, calls):
        await self._travel()
        self.do_record(account_id, calls)

    async def keep(self, *, hold_id, account_id, call, code, reason):
        await self._travel()
        self.do_keep(call, code)

    async def _travel(self):
        await asyncio.sleep(self.delay_s)
        if not self.reachable:
            raise Unavailable("the ledger can't be reached")
