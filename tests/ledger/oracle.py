"""A naive ledger: what the book must agree with, written without its code.

Every hold is a queue of (lot, amount) still held and a stack of (lot, amount) captured; all lots are sorted anew for
every hold, and everything is looked through for whatever fell due.
"""

from fabric.ledger import Scope
from fabric.units import UHS_PER_CT

ACCOUNTS = ("ada", "bob")
CREDIT = None
WINDOW = 10
MARGIN = 3


def admits(scope, use):
    if scope.services and use.service not in scope.services:
        return False
    return not scope.accelerators or (use.accelerators != () and set(use.accelerators) <= set(scope.accelerators))


class OracleLot:
    def __init__(self, lot_id, account, *, amount, terms, now):
        self.lot_id, self.account, self.amount, self.terms, self.now = lot_id, account, amount, terms, now
        self.free, self.expired = amount, 0

    def alive(self, now):
        return self.terms.expires_at_us is None or self.terms.expires_at_us > now

    def rank(self):
        never = self.terms.expires_at_us is None
        width = sum(1 for part in (self.terms.scope.services, self.terms.scope.accelerators) if part)
        return (
            self.terms.priority,
            (never, self.terms.expires_at_us or 0),
            0 if self.terms.origin == "promotion" else 1,
            -width,
            self.terms.price_microcny * UHS_PER_CT // self.amount,
            self.now,
            self.lot_id,
        )


class OracleHold:
    def __init__(self, account, use, *, expires, answer):
        self.account, self.use, self.expires, self.answer = account, use, expires, answer
        self.queue, self.stack = [], []
        self.seq, self.state, self.lapsed, self.settle_by = 0, "open", 0, None
        self.waiting, self.good_until = False, {}

    @property
    def held(self):
        return sum(amount for _, amount in self.queue)

    @property
    def captured(self):
        return sum(amount for _, amount in self.stack)


class Oracle:
    def __init__(self):
        self.lots, self.holds = {}, {}
        self.limit = dict.fromkeys(ACCOUNTS, 0)
        self.debt = dict.fromkeys(ACCOUNTS, 0)
        self.invoices = {name: [] for name in ACCOUNTS}
        self.lost = dict.fromkeys(ACCOUNTS, 0)

    def credit(self, account):
        return max(0, self.limit[account] - self.debt[account] - self.credit_held(account) - self.unpaid(account))

    def credit_held(self, account):
        holds = [hold for hold in self.holds.values() if hold.account == account]
        return sum(amount for hold in holds for lot, amount in hold.queue if lot is CREDIT)

    def unpaid(self, account):
        """Tokens in invoices: as much of each as of its price isn't paid."""
        return sum(-(-amount * (price - paid) // price) for amount, price, paid in self.invoices[account])

    def due(self, account):
        return sum(price - paid for _, price, paid in self.invoices[account])

    def spendable(self, account, use, now):
        lots = [lot for lot in self.lots.values() if lot.account == account and lot.alive(now)]
        lots = [lot for lot in lots if lot.terms.effective_at_us <= now and admits(lot.terms.scope, use)]
        return sorted(lots, key=OracleLot.rank)

    def free(self, account, use, now):
        return sum(lot.free for lot in self.spendable(account, use, now)) + self.credit(account)

    def take(self, account, use, *, amount, now):
        """A list of (lot, amount); what no lot has is on credit."""
        parts = []
        for lot in self.spendable(account, use, now):
            part = min(lot.free, amount)
            if part:
                lot.free -= part
                amount -= part
                parts.append((lot, part))
        return [*parts, (CREDIT, amount)] if amount else parts

    def extend(self, hold, *, amount, minimum, now):
        granted = min(amount, self.free(hold.account, hold.use, now))
        if granted < amount and (minimum is None or granted < max(1, minimum)):
            return None
        hold.queue += self.take(hold.account, hold.use, amount=granted, now=now)
        return granted

    def capture(self, hold, amount):
        debt = 0
        while amount:
            lot, there = hold.queue.pop(0)
            part = min(there, amount)
            if there > part:
                hold.queue.insert(0, (lot, there - part))
            hold.stack.append((lot, part))
            amount -= part
            debt += part if lot is CREDIT else 0
        self.debt[hold.account] += debt
        return debt

    def refund(self, hold, amount, now):
        """Into the lots that it came from; how much of it goes into lots of its own, one for each that it came from."""
        invoiced, late = 0, {}
        while amount:
            lot, there = hold.stack.pop()
            part = min(there, amount)
            if there > part:
                hold.stack.append((lot, there - part))
            amount -= part
            if lot is CREDIT:
                owed = min(part, self.debt[hold.account])
                self.debt[hold.account] -= owed
                invoiced += part - owed
                part = owed
            elif not lot.alive(now + MARGIN):
                late[lot.lot_id] = late.get(lot.lot_id, 0) + part
                part = 0
            if part:
                hold.queue.insert(0, (lot, part))
        return [*late.values()] + [invoiced] * (invoiced > 0)

    def hold_anew(self, hold, now):
        """Of what is good, what it held of lots that have expired and that it can't keep."""
        kept, lost = [], 0
        for lot, amount in hold.queue:
            dead = lot is not CREDIT and not lot.alive(now)
            until = hold.good_until.get(lot.lot_id) if dead else None
            if dead and (hold.waiting or (until is not None and until <= now)):
                lot.expired, lost = lot.expired + amount, lost + amount
            else:
                kept.append((lot, amount))
        hold.queue = kept
        there = min(lost, self.free(hold.account, hold.use, now))
        hold.queue += self.take(hold.account, hold.use, amount=there, now=now)
        return lost - there

    def stale_at(self, hold):
        if hold.waiting:
            times = [lot.terms.expires_at_us for lot, _ in hold.queue if lot is not CREDIT]
        else:
            times = [hold.good_until.get(lot.lot_id) for lot, _ in hold.queue if lot is not CREDIT]
        return min((time for time in times if time is not None), default=None)

    def renew(self, hold, expires, now):
        for lot, _ in hold.queue:
            if lot is not CREDIT and not lot.alive(now):
                hold.good_until.setdefault(lot.lot_id, max(hold.expires, now) if hold.expires is not None else now)
        hold.state, hold.expires = "open", max(expires, now)

    def book_usage(self, hold, used, now):
        """Held, then free, then lost: (what became debt, what the operator lost)."""
        covered = min(used, hold.held)
        debt = self.capture(hold, covered)
        there = min(used - covered, self.free(hold.account, hold.use, now))
        parts = self.take(hold.account, hold.use, amount=there, now=now)
        hold.stack += parts
        beyond = sum(amount for lot, amount in parts if lot is CREDIT)
        self.debt[hold.account] += beyond
        self.lost[hold.account] += used - covered - there
        return debt + beyond, used - covered - there

    def end(self, hold, state, now):
        freed = hold.held
        for lot, amount in hold.queue:
            if lot is not CREDIT and lot.alive(now):
                lot.free += amount
            elif lot is not CREDIT:
                lot.expired += amount
        hold.queue, hold.state = [], state
        return freed

    def advance(self, now):
        while True:
            due = [
                (h.expires, 0, name) for name, h in self.holds.items() if h.state == "open" and h.expires is not None
            ]
            due += [
                (stale, -1, name)
                for name, h in self.holds.items()
                if h.state == "open" and (stale := self.stale_at(h)) is not None
            ]
            due += [(h.settle_by, 0, name) for name, h in self.holds.items() if h.state == "aside"]
            due += [
                (lot.terms.expires_at_us, 1, name) for name, lot in self.lots.items() if lot.free and not lot.alive(now)
            ]
            due = [deadline for deadline in due if deadline[0] <= now]
            if not due:
                return
            at, kind, name = min(due)
            if kind == -1:
                self.hold_anew(self.holds[name], at)
            elif kind == 0 and self.holds[name].state == "open":
                self.holds[name].state, self.holds[name].settle_by = "aside", at + WINDOW
            elif kind == 0:
                self.holds[name].lapsed = self.holds[name].held
                self.end(self.holds[name], "lapsed", at)
            else:
                self.lots[name].expired += self.lots[name].free
                self.lots[name].free = 0

    def repay(self, lot, now):
        owed = self.debt[lot.account] + self.credit_held(lot.account) + self.unpaid(lot.account)
        over = owed - self.limit[lot.account]
        if lot.terms.scope == Scope() and lot.terms.effective_at_us <= now:
            part = max(0, min(lot.free, self.debt[lot.account], over))
            lot.free -= part
            self.debt[lot.account] -= part
