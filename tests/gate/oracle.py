"""What the gate's model is held against: a naive auditor of transfers.

The auditor believes the amount of a transfer and nothing else: which lots it must have touched, in which order, and whether
it was allowed, it works out itself from plain lists. It shares no code with the ledger but the records it reads.
"""

import copy
from collections import defaultdict
from fractions import Fraction

from fabric.ledger.state import REFUND_MARGIN_US
from fabric.units import UHS_PER_CT
from tests.gate.oracle_debts import Debts
from tests.gate.oracle_lots import CREDIT, assert_same_lots, refilled

S = 1_000_000


def admits(scope, use):
    if scope.services and use.service not in scope.services:
        return False
    for allowed, wanted in (
        (scope.accelerators, use.accelerators),
        (scope.models, use.models),
        (scope.operators, use.operators),
    ):
        if allowed and not (wanted and set(wanted) <= set(allowed)):
            return False
    return True


class Lot:
    def __init__(self, lot_id, account, amount, terms, granted_at):
        self.lot_id, self.account, self.amount, self.terms, self.granted_at = lot_id, account, amount, terms, granted_at
        self.free, self.held, self.captured, self.expired = amount, 0, 0, 0
        self.voided = self.frozen = 0
        self.is_charged_back = False

    def alive(self, now):
        return self.terms.expires_at_us is None or now < self.terms.expires_at_us

    def rank(self):
        terms = self.terms
        scope = terms.scope
        width = sum(map(bool, (scope.services, scope.accelerators, scope.models, scope.operators)))
        return (
            terms.priority,
            terms.expires_at_us is None,
            terms.expires_at_us or 0,
            terms.origin != "promotion",
            -width,
            terms.price_microcny * UHS_PER_CT // self.amount,
            self.granted_at,
            self.lot_id,
        )


class Hold:
    def __init__(self, account, use):
        self.account, self.use = account, use
        self.queue, self.stack, self.lost = [], [], 0
        self.seq, self.answer, self.state, self.lapsed, self.settle_by = 0, None, "open", 0, None

    @property
    def held(self):
        return sum(amount for _, amount in self.queue)

    @property
    def captured(self):
        return sum(amount for _, amount in self.stack)


class Auditor(Debts):
    """Lots as a list, holds as a dict of queues."""

    def __init__(self, policy_of, price_of=lambda account: 0):
        self.lots, self.holds = [], {}
        self.price_of = price_of
        self.at_price, self.fresh, self.invoices = defaultdict(list), {}, defaultdict(list)
        self.uses, self.used = {}, defaultdict(list)
        """What the event in hand makes due for the holds of jobs: (price, amount), a part for each that is booked by itself."""
        self.debt, self.limit, self.lost = defaultdict(int), defaultdict(int), defaultdict(int)
        self.arrears = defaultdict(int)
        """Owed for what was charged back, never for use."""
        self.policy_of = policy_of
        self.paths, self.count = defaultdict(int), 0
        self.purchases = {}

    def __deepcopy__(self, memo):
        """A trial of its own, by the same policy: who asks is not copied with it."""
        made = Auditor(self.policy_of, self.price_of)
        memo[id(self)] = made
        asked = ("policy_of", "price_of")
        vars(made).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items() if name not in asked})
        return made

    def lot(self, lot_id):
        return next(lot for lot in self.lots if lot.lot_id == lot_id)

    # -- what could be had -----------------------------------------------------------------------------------------------

    def spendable(self, account, use, now):
        origins, credit = self.policy_of(account, use)
        lots = [
            lot
            for lot in self.lots
            if (lot.account, lot.alive(now), admits(lot.terms.scope, use)) == (account, True, True)
            and lot.terms.effective_at_us <= now
            and (origins is None or lot.terms.origin in origins)
        ]
        owed = self.owes(account) + self.on_credit(account)
        return sorted(lots, key=Lot.rank), max(0, self.limit[account] - owed) if credit else 0

    def on_credit(self, account):
        holds = [hold for hold in self.holds.values() if hold.account == account]
        return sum(amount for hold in holds for lot, amount in hold.queue if lot == CREDIT)

    def free(self, account, use, now):
        lots, credit = self.spendable(account, use, now)
        return sum(lot.free for lot in lots) + credit

    def take(self, account, use, amount, now, *, into):
        """(lot, amount) in burn order; what no lot has is on credit."""
        parts = []
        for lot in self.spendable(account, use, now)[0]:
            part = min(lot.free, amount)
            if part:
                lot.free -= part
                setattr(lot, into, getattr(lot, into) + part)
                parts.append((lot.lot_id, part))
                amount -= part
        return [*parts, (CREDIT, amount)] if amount else parts

    # -- what was done ---------------------------------------------------------------------------------------------------

    def apply(self, transfer, *, use_of, terms_of):
        self.count += 1
        assert transfer.transfer_id == self.count
        sums = defaultdict(int)
        for leg in transfer.postings:
            sums[leg.asset] += leg.amount
            self.paths[leg.account] += leg.amount
        assert not any(sums.values()), transfer
        amounts = {leg.account.rsplit("/", 1)[-1]: leg.amount for leg in transfer.postings if leg.asset == "CT"}
        getattr(self, f"_{transfer.kind}")(transfer, amounts, use_of, terms_of)

    def _granted(self, transfer, amounts, use_of, terms_of):
        (share,) = transfer.lots
        assert share.lot_id not in [lot.lot_id for lot in self.lots]
        assert amounts == {"issued": -share.amount_uhs, "available": share.amount_uhs}
        lot = Lot(share.lot_id, transfer.account_id, share.amount_uhs, terms_of(share.lot_id), transfer.at_us)
        self.lots.append(lot)
        if transfer.linked_to is not None:
            assert self.purchases[transfer.linked_to] == transfer.account_id
        self.purchases[transfer.transfer_id] = transfer.account_id

    _top_up = _bundle = _subscription = _grant = _granted

    def _void(self, transfer, amounts, use_of, terms_of):
        lot, (share,) = self.lot(transfer.ref), transfer.lots
        assert share.lot_id == lot.lot_id
        assert 0 < share.amount_uhs <= lot.free
        assert amounts == {"available": -share.amount_uhs, "issued": share.amount_uhs}
        lot.free -= share.amount_uhs
        if "frozen" in transfer.flags:
            lot.frozen, lot.is_charged_back = lot.frozen + share.amount_uhs, True
        else:
            lot.voided += share.amount_uhs

    def _charge_back(self, transfer, amounts, use_of, terms_of):
        self.arrears[transfer.account_id] -= amounts.get("debt", 0)
        assert amounts.get("issued", 0) == -amounts.get("debt", 0) >= 0

    def _reinstate(self, transfer, amounts, use_of, terms_of):
        forgiven = amounts.get("debt", 0)
        assert 0 <= forgiven <= self.arrears[transfer.account_id]
        self.arrears[transfer.account_id] -= forgiven
        for share in transfer.lots:
            lot = self.lot(share.lot_id)
            assert 0 < share.amount_uhs == amounts["available"] <= lot.frozen
            lot.frozen, lot.free = lot.frozen - share.amount_uhs, lot.free + share.amount_uhs

    def _money_only(self, transfer, amounts, use_of, terms_of):
        assert amounts == {}

    _pay_out = _suspense = _money_only

    def _sale(self, transfer, amounts, use_of, terms_of):
        assert amounts == {}

    def _repay(self, transfer, amounts, use_of, terms_of):
        lot, amount = self.lot(transfer.ref), amounts["debt"]
        if "charged_back" in transfer.flags:
            assert 0 < amount == min(lot.free, self.arrears[lot.account]), "all that it can pay"
            lot.free, lot.captured = lot.free - amount, lot.captured + amount
            self.arrears[lot.account] -= amount
            return
        assert 0 < amount <= min(lot.free, self.debt[lot.account])
        lot.free -= amount
        lot.captured += amount
        self.owe_less(lot.account, amount, newest=False)

    def _hold(self, transfer, amounts, use_of, terms_of):
        account, amount = transfer.account_id, amounts["held"]
        if transfer.ref not in self.holds:
            self.holds[transfer.ref] = Hold(account, use_of(transfer.ref))
        hold = self.holds[transfer.ref]
        hold.state = "open" if hold.state == "aside" else hold.state
        assert (hold.state, hold.account) == ("open", account)
        assert 0 < amount <= self.free(account, hold.use, transfer.at_us), f"overdraft: {transfer}"
        if "carried" in transfer.flags:
            (share,) = transfer.lots
            lot = self.lot(share.lot_id)
            assert share.amount_uhs == amount <= lot.free
            assert (lot.terms.origin, lot.terms.price_microcny) == ("subscription", 0), "what was rolled over"
            lot.free, lot.held = lot.free - amount, lot.held + amount
            hold.queue += [(lot.lot_id, amount)]
            return
        parts = self.take(account, hold.use, amount, transfer.at_us, into="held")
        assert_same_lots(parts, transfer)
        assert -amounts.get("debt", 0) == sum(amount for lot, amount in parts if lot == CREDIT)
        hold.queue += parts

    def _capture(self, transfer, amounts, use_of, terms_of):
        hold, amount = self.holds[transfer.ref], amounts["redeemed"]
        account = hold.account
        if "held" in amounts:
            parts = []
            while amount:
                lot_id, there = hold.queue.pop(0)
                part = min(there, amount)
                if there > part:
                    hold.queue.insert(0, (lot_id, there - part))
                parts.append((lot_id, part))
                amount -= part
                if lot_id != CREDIT:
                    self.lot(lot_id).held -= part
                    self.lot(lot_id).captured += part
        else:
            assert not hold.queue, "what is held is used before what is free"
            assert {"over_hold", "late"} & set(transfer.flags)
            assert amount <= self.free(account, hold.use, transfer.at_us), f"a customer is charged beyond: {transfer}"
            parts = self.take(account, hold.use, amount, transfer.at_us, into="captured")
            assert -amounts.get("debt", 0) == sum(part for lot, part in parts if lot == CREDIT)
        assert_same_lots(parts, transfer)
        price = self.used_at(transfer.ref, amounts["redeemed"])
        self.owe(account, sum(part for lot, part in parts if lot == CREDIT), price, transfer.ref)
        hold.stack += parts

    def _write_off(self, transfer, amounts, use_of, terms_of):
        """Only when nothing is left that could pay: not in the hold, not beside it."""
        lost = amounts["redeemed"]
        assert amounts == {"written_off": -lost, "redeemed": lost}
        if "no_hold" in transfer.flags:
            self.lost[transfer.account_id] += lost
            return
        hold = self.holds[transfer.ref]
        assert lost > 0 == hold.held + self.free(hold.account, hold.use, transfer.at_us)
        self.lost[hold.account] += lost
        hold.lost += lost

    def _release(self, transfer, amounts, use_of, terms_of):
        hold = self.holds[transfer.ref]
        parts = [(lot, part) for lot, part in hold.queue if lot == CREDIT or self.lot(lot).alive(transfer.at_us)]
        hold.queue = [part for part in hold.queue if part not in parts]
        for lot_id, part in parts:
            if lot_id != CREDIT:
                self.lot(lot_id).held -= part
                self.lot(lot_id).free += part
        assert -amounts["held"] == sum(part for _, part in parts)
        assert_same_lots(parts, transfer)

    def _expire(self, transfer, amounts, use_of, terms_of):
        lost = amounts["breakage"]
        if transfer.ref in self.holds and "held" in amounts:
            self._expire_held(transfer, lost)
            return
        lot = self.lot(transfer.ref)
        assert lost == lot.free
        assert lot.terms.origin == "subscription" or not lot.alive(transfer.at_us)
        lot.free, lot.expired = 0, lot.expired + lost

    def _expire_held(self, transfer, lost):
        """Only of lots that have expired, or whose subscription goes on with others; what is left of one, or what is named."""
        hold = self.holds[transfer.ref]
        shares = defaultdict(int)
        for share in transfer.lots:  # a hold may have several parts of a lot
            shares[share.lot_id] += share.amount_uhs
        assert sum(shares.values()) == lost
        for lot_id, part in shares.items():
            lot = self.lot(lot_id)
            assert not lot.alive(transfer.at_us) or lot.terms.origin == "subscription"
            lot.held, lot.expired = lot.held - part, lot.expired + part
        left = []
        for lot_id, part in hold.queue:
            gone = min(part, shares.get(lot_id, 0))
            shares[lot_id] = shares.get(lot_id, 0) - gone
            left += [(lot_id, part - gone)] if part > gone else []
        hold.queue = left
        assert not any(shares.values()), "no more than it held"

    def _refund(self, transfer, amounts, use_of, terms_of):
        hold, amount = self.holds[transfer.ref], amounts["held"]
        shares = {share.lot_id: share.amount_uhs for share in transfer.lots}
        back, anew = [], 0
        while amount:
            lot_id, there = hold.stack.pop()
            part = min(there, amount)
            if there > part:
                hold.stack.append((lot_id, there - part))
            amount -= part
            if lot_id == CREDIT:
                owed = min(part, self.debt[hold.account])
                self.take_back(hold.account, owed, self.used[transfer.ref.partition("#")[0]])
                back.append((CREDIT, owed))
                anew += part - owed
            elif not self.lot(lot_id).alive(transfer.at_us + REFUND_MARGIN_US):
                anew += part
            else:
                self.lot(lot_id).captured -= part
                self.lot(lot_id).held += part
                back.append((lot_id, part))
        assert anew == sum(n for lot, n in shares.items() if lot.startswith("refund/"))
        for lot_id, part in shares.items():
            if lot_id.startswith("refund/"):
                lot = Lot(lot_id, hold.account, part, terms_of(lot_id), transfer.at_us)
                lot.free, lot.held = 0, part
                self.lots.append(lot)
        hold.queue = refilled(
            hold.queue, back, new=[(lot, n) for lot, n in shares.items() if lot.startswith("refund/")]
        )

    def _invoice(self, transfer, amounts, use_of, terms_of):
        account, debt = transfer.account_id, amounts["debt"]
        assert debt == self.debt[account]
        exact = sum(Fraction(price * amount, UHS_PER_CT) for price, amount in self.owed(account))
        (price,) = [leg.amount for leg in transfer.postings if leg.account == f"receivable/{account}"] or (0,)
        rounding = sum(leg.amount for leg in transfer.postings if leg.account == "op/op/rounding")
        assert price == (max(round(exact / 10_000), 1) * 10_000 if exact else 0), "in whole fen, rounded once"
        assert price + rounding == (max(round(exact), 1) if exact else 0), "and the difference is booked"
        before = self.owes(account)
        self.owe_less(account, debt, newest=False)
        if price:
            self.invoices[account].append([debt, price, 0, transfer.ref])
        assert self.owes(account) == before or not price, "a close forgave something"

    def _credit_note(self, transfer, amounts, use_of, terms_of):
        account = transfer.account_id
        (amount,) = [-leg.amount for leg in transfer.postings if leg.account == f"receivable/{account}"]
        (invoice,) = [each for each in self.invoices[account] if each[3] == transfer.ref]
        assert amounts == {}
        assert 0 < amount <= invoice[1] - invoice[2]
        invoice[2] += amount
        self.invoices[account] = [each for each in self.invoices[account] if each[1] > each[2]]

    def _payment(self, transfer, amounts, use_of, terms_of):
        account = transfer.account_id
        (amount,) = [-leg.amount for leg in transfer.postings if leg.account == f"receivable/{account}"]
        assert amounts == {}
        assert 0 < amount <= self.due(account)
        for invoice in self.invoices[account]:
            part = min(amount, invoice[1] - invoice[2])
            invoice[2] += part
            amount -= part
        self.invoices[account] = [invoice for invoice in self.invoices[account] if invoice[1] > invoice[2]]
