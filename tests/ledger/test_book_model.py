"""The book against a naive oracle, one step at a time.

After every step the two agree, the book is sound, and its transfers alone give every balance.
"""

from collections import defaultdict
from fractions import Fraction

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from fabric.ledger import Book, Granted, Origin, Refused, Scope, Service, Settled, Terms, Use
from fabric.ledger.funding import FEN_MICROCNY
from fabric.units import UHS_PER_CT

from .oracle import ACCOUNTS, MARGIN, WINDOW, Oracle, OracleHold, OracleLot

FEN_EACH = UHS_PER_CT * FEN_MICROCNY
"""The price of a token at which each µHs is a fen."""
USES = (
    Use(service=Service.TRAINING, accelerators=("H100",)),
    Use(service=Service.INFERENCE, accelerators=("H100", "A100")),
    Use(service=Service.TRAINING),
)
SCOPES = (
    Scope(),
    Scope(accelerators=("H100",)),
    Scope(services=(Service.TRAINING,)),
    Scope(services=(Service.INFERENCE,), accelerators=("A100", "H100")),
)

amounts = st.integers(1, 40)
seqs = st.integers(-1, 3)


class BookMachine(RuleBasedStateMachine):
    holds = Bundle("holds")

    def __init__(self):
        super().__init__()
        self.now, self.made = 0, 0
        self.book, self.oracle = Book(operator="op", settlement_window_us=WINDOW, refund_margin_us=MARGIN), Oracle()
        self.paths = defaultdict(int)
        self.last_transfer = 0
        self.ends = defaultdict(int)
        self.most_credit = dict.fromkeys(ACCOUNTS, 0)

    @initialize(limit=st.sampled_from([0, 25]))
    def open_accounts(self, limit):
        for account in ACCOUNTS:
            assert self.book.open_account(account, now_us=0) is None
        self.set_limit("bob", limit)
        for account in ACCOUNTS:
            self.grant(account=account, amount=40, life=30, delay=0, scope=SCOPES[0], origin=Origin.TOP_UP, rank=(0, 3))

    def do(self, call):
        """Make a call: if it is refused, the state is what the time alone would have made of it."""
        before = msgspec.msgpack.encode(self.book)
        self.oracle.advance(self.now)
        answer = call()
        if isinstance(answer, Refused):
            after = msgspec.msgpack.encode(self.book)
            if after != before:
                waited = msgspec.msgpack.decode(before, type=Book)
                waited.sweep(now_us=self.now)
                assert after == msgspec.msgpack.encode(waited)
        return answer

    def name(self, kind):
        self.made += 1
        return f"{kind}{self.made}"

    # -- money and time ------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0, 1, 5, 20]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def sweep(self):
        self.do(lambda: self.book.sweep(now_us=self.now))
        once = msgspec.msgpack.encode(self.book)
        self.book.sweep(now_us=self.now)
        assert msgspec.msgpack.encode(self.book) == once
        due = self.book.next_due_us()
        assert due is None or due > self.now

    @rule()
    def restart(self):
        encoded = msgspec.msgpack.encode(self.book)
        due = self.book.next_due_us()
        self.book = msgspec.msgpack.decode(encoded, type=Book)
        assert msgspec.msgpack.encode(self.book) == encoded
        assert self.book.next_due_us() == due

    @rule(
        account=st.sampled_from(ACCOUNTS),
        amount=amounts,
        life=st.sampled_from([None, 1, 4, 10, 30]),
        delay=st.sampled_from([0, 0, 0, 3]),
        scope=st.sampled_from(SCOPES),
        origin=st.sampled_from([Origin.TOP_UP, Origin.PROMOTION]),
        rank=st.tuples(st.sampled_from([0, 0, 1]), st.integers(0, 3)),
    )
    def grant(self, *, account, amount, life, delay, scope, origin, rank):
        effective = self.now + delay
        terms = Terms(
            origin=origin,
            tier="starter",
            priority=rank[0],
            scope=scope,
            effective_at_us=effective,
            expires_at_us=None if life is None else effective + life,
            price_microcny=rank[1],
            channel="sandbox",
        )
        lot_id = self.name("lot")
        answer = self.do(
            lambda: self.book.grant(account, lot_id=lot_id, amount_uhs=amount, terms=terms, now_us=self.now)
        )
        assert not isinstance(answer, Refused)
        lot = self.oracle.lots[lot_id] = OracleLot(lot_id, account, amount=amount, terms=terms, now=self.now)
        self.oracle.repay(lot, self.now)

    @precondition(lambda self: self.oracle.lots)
    @rule(data=st.data(), part=st.sampled_from([1, 2, 3]))
    def void(self, data, part):
        """What nobody holds and nobody has used is as if it had never been sold; the price goes with it."""
        self.sweep()
        lot = self.oracle.lots[data.draw(st.sampled_from(list(self.oracle.lots)))]
        self.oracle.advance(self.now)
        amount = lot.free // part
        if not amount:
            return
        issued, revenue = self.book.tokens_uhs["issued"], self.book.money_microcny["revenue"]
        price = self.do(lambda: self.book.void(lot.lot_id, amount_uhs=amount, now_us=self.now))
        lot.free -= amount
        assert self.book.tokens_uhs["issued"] == issued + amount
        assert self.book.money_microcny["revenue"] == revenue + price
        voided = self.book.lots[lot.lot_id].voided_uhs
        assert 0 <= price <= lot.terms.price_microcny
        assert voided < lot.amount or price > 0 or not lot.terms.price_microcny or voided > amount

    @rule(account=st.sampled_from(ACCOUNTS), limit=st.sampled_from([0, 10, 30]))
    def set_limit(self, account, limit):
        self.sweep()
        self.do(lambda: self.book.set_credit_limit(account, credit_limit_uhs=limit))
        self.oracle.limit[account] = limit
        self.most_credit[account] = max(self.most_credit[account], limit)

    @rule(account=st.sampled_from(ACCOUNTS), per_ct=st.sampled_from([0, 1, FEN_EACH // 3, FEN_EACH]))
    def invoice(self, account, per_ct):
        """Debt becomes an invoice, and counts as much as before until it is paid, unless tokens cost nothing."""
        self.sweep()
        debt = self.oracle.debt[account]
        before = self.book.accounts[account].exposed_uhs
        answer = self.do(
            lambda: self.book.close_invoice(account, invoice_id="i", microcny_per_ct=per_ct, now_us=self.now)
        )
        assert (answer is None) == (debt == 0)
        self.oracle.debt[account] = 0
        if debt and per_ct:
            fen = max(1, round(Fraction(debt * per_ct, UHS_PER_CT * FEN_MICROCNY)))
            self.oracle.invoices[account].append([debt, fen * FEN_MICROCNY, 0])
        assert self.book.accounts[account].exposed_uhs == (before if per_ct else before - debt)

    @rule(account=st.sampled_from(ACCOUNTS), share=st.sampled_from([1, 2, 3]))
    def pay(self, account, share):
        amount = self.oracle.due(account) // share
        answer = self.do(
            lambda: self.book.pay(
                account, amount_microcny=amount, channel="bank", payment_ref=self.name("p"), now_us=self.now
            )
        )
        assert isinstance(answer, Refused) == (amount == 0)
        for invoice in self.oracle.invoices[account]:
            part = min(amount, invoice[1] - invoice[2])
            invoice[2] += part
            amount -= part
        self.oracle.invoices[account] = [each for each in self.oracle.invoices[account] if each[1] > each[2]]

    # -- holds ---------------------------------------------------------------------------------------------------------

    @rule(
        target=holds,
        account=st.sampled_from(ACCOUNTS),
        amount=st.integers(0, 60),
        use=st.sampled_from(USES),
        ttl=st.sampled_from([None, None, 2, 8, 25]),
        minimum=st.sampled_from([None, None, 1, 20]),
    )
    def authorize(self, account, amount, use, ttl, minimum):
        hold_id = self.name("hold")
        expires = None if ttl is None else self.now + ttl
        answer = self.do(
            lambda: self.book.authorize(
                account,
                hold_id=hold_id,
                amount_uhs=amount,
                use=use,
                now_us=self.now,
                expires_at_us=expires,
                minimum_uhs=minimum,
            )
        )
        hold = OracleHold(account, use, expires=expires, answer=answer)
        granted = self.oracle.extend(hold, amount=amount, minimum=minimum, now=self.now) if amount else None
        if granted is None:
            assert isinstance(answer, Refused)
            if amount:
                free = self.oracle.free(account, use, self.now)
                assert (answer.code, answer.facts["free_uhs"]) == ("insufficient_tokens", free)
            return multiple()
        assert answer == Granted(granted, granted, granted < amount)
        self.oracle.holds[hold_id] = hold
        return hold_id

    @rule(name=holds)
    def authorize_again(self, name):
        answer = self.do(
            lambda: self.book.authorize(
                "ada", hold_id=name, amount_uhs=1, use=USES[0], now_us=self.now, expires_at_us=None
            )
        )
        assert answer.code == "hold_exists"

    def heard_before(self, hold, seq, answer, kind):
        """Whether the oracle, too, says that this word is old, or comes to the wrong hold."""
        if seq == hold.seq and isinstance(hold.answer, kind):
            assert answer == hold.answer
        elif seq <= hold.seq:
            assert answer.code == "stale_seq"
        elif hold.state == "ended":
            assert answer.code == "hold_ended"
        else:
            return False
        return True

    @rule(
        name=holds,
        step=seqs,
        used=st.integers(0, 30),
        more=st.integers(0, 30),
        ttl=st.sampled_from([None, 0, 5, 20]),
        partial=st.booleans(),
    )
    def update(self, *, name, step, used, more, ttl, partial):
        hold = self.oracle.holds[name]
        seq = hold.seq + step
        expires = None if ttl is None else self.now + ttl
        answer = self.do(
            lambda: self.book.update(
                name,
                seq=seq,
                used_uhs=used,
                more_uhs=more,
                now_us=self.now,
                expires_at_us=expires,
                minimum_uhs=1 if partial else more,
            )
        )
        if self.heard_before(hold, seq, answer, Granted):
            return
        _, lost = self.oracle.book_usage(hold, used, self.now)
        if hold.state in ("open", "aside") and expires is not None:
            self.oracle.renew(hold, expires, self.now)
        granted = 0
        if hold.state == "open":
            granted = (
                more and self.oracle.extend(hold, amount=more, minimum=1 if partial else None, now=self.now)
            ) or 0
        assert answer == Granted(granted, hold.held, granted < more or hold.state != "open", lost)
        hold.lapsed = max(0, hold.lapsed - used)
        hold.seq, hold.answer = seq, answer

    @rule(name=holds, step=seqs, used=st.integers(0, 60), release=st.booleans())
    def finish(self, name, step, used, release):
        hold = self.oracle.holds[name]
        seq = hold.seq + step
        used = 0 if release else used
        answer = self.do(
            lambda: (
                self.book.release(name, seq=seq, now_us=self.now)
                if release
                else self.book.settle(name, seq=seq, used_uhs=used, now_us=self.now)
            )
        )
        if self.heard_before(hold, seq, answer, Settled):
            return
        late = hold.state != "open"
        over = used > (hold.lapsed if hold.state == "lapsed" else hold.held)
        debt, lost = self.oracle.book_usage(hold, used, self.now)
        freed = self.oracle.end(hold, "ended", self.now)
        assert answer == Settled(used - lost, freed, debt, over, late, lost)
        hold.seq, hold.answer = seq, answer
        self.ends[name] += 1

    @precondition(lambda self: self.book.holds)
    @rule(data=st.data(), runs=st.booleans())
    def wait_or_run(self, data, runs):
        """Something runs on a hold from now on, or nothing does any more."""
        self.sweep()
        if not self.book.holds:
            return
        name = data.draw(st.sampled_from(list(self.book.holds)))
        hold = self.oracle.holds[name]
        if runs:
            self.book.run(name)
            hold.waiting, hold.good_until = False, {}
            for piece in self.book.holds[name].pieces:
                piece.good_until_us = None
        else:
            short = self.do(lambda: self.book.wait(name, now_us=self.now))
            hold.waiting = True
            assert short == self.oracle.hold_anew(hold, self.now)

    @precondition(lambda self: self.book.holds)
    @rule(data=st.data(), verb=st.sampled_from(["capture", "capture", "refund", "extend", "close"]), amount=amounts)
    def meter(self, data, verb, amount):
        self.sweep()
        if not self.book.holds:
            return
        name = data.draw(st.sampled_from(list(self.book.holds)))
        hold = self.oracle.holds[name]
        assert hold.state == "open"
        if verb == "capture":
            part = min(amount, hold.held)
            assert self.do(lambda: self.book.capture(name, amount_uhs=amount, now_us=self.now)) == part
            self.oracle.capture(hold, part)
        elif verb == "refund":
            part = min(amount, hold.captured)
            assert self.do(lambda: self.book.refund(name, amount_uhs=amount, now_us=self.now)) == part
            self.adopt_refund(hold, self.oracle.refund(hold, part, self.now))
        elif verb == "extend":
            answer = self.do(lambda: self.book.extend(name, amount_uhs=amount, now_us=self.now, minimum_uhs=5))
            granted = self.oracle.extend(hold, amount=amount, minimum=5, now=self.now)
            assert (answer.code if granted is None else answer) == (
                "insufficient_tokens" if granted is None else Granted(granted, hold.held, granted < amount)
            )
        else:
            assert self.do(lambda: self.book.close(name, now_us=self.now)) == self.oracle.end(hold, "ended", self.now)
            self.ends[name] += 1

    def adopt_refund(self, hold, amounts):
        """A refund of invoiced debt, or of a lot that is hardly good any more, is a new lot, all of it held."""
        new = [lot for lot_id, lot in self.book.lots.items() if lot_id not in self.oracle.lots]
        assert [lot.held_uhs for lot in new] == amounts
        for made in new:
            lot = OracleLot(made.lot_id, hold.account, amount=made.granted_uhs, terms=made.terms, now=self.now)
            assert lot.alive(self.now + MARGIN)
            lot.free = 0
            self.oracle.lots[lot.lot_id] = lot
            hold.queue.append((lot, made.held_uhs))

    # -- what is always so ---------------------------------------------------------------------------------------------

    @invariant()
    def the_book_is_sound(self):
        self.book.check()

    @invariant()
    def every_hold_ends_at_most_once(self):
        assert all(count == 1 for count in self.ends.values())
        kept = [*self.book.holds, *self.book.lapsed, *self.book.expired, *self.book.ended]
        assert len(kept) == len(set(kept))

    @invariant()
    def an_account_owes_no_more_than_its_credit(self):
        """Unless its limit was lowered under it; one that never had credit never owes anything."""
        for account in ACCOUNTS:
            owed = self.book.accounts[account].exposed_uhs
            assert owed <= self.most_credit[account]

    @invariant()
    def the_oracle_agrees(self):
        self.oracle.advance(self.now)
        for account in ACCOUNTS:
            for use in USES:
                swept = msgspec.msgpack.decode(msgspec.msgpack.encode(self.book), type=Book)
                swept.sweep(now_us=self.now)
                assert swept.free(account, now_us=self.now, use=use) == self.oracle.free(account, use, self.now)
            assert swept.accounts[account].debt_uhs == self.oracle.debt[account]
            assert swept.accounts[account].invoiced_uhs == self.oracle.unpaid(account)
            assert swept.accounts[account].receivable_microcny == self.oracle.due(account)
            assert swept.accounts[account].credit_held_uhs == self.oracle.credit_held(account)
        for lot_id, lot in self.oracle.lots.items():
            booked = swept.lots[lot_id]
            assert (booked.free_uhs, booked.expired_uhs) == (lot.free, lot.expired)
        for name, hold in self.oracle.holds.items():
            if hold.state in ("open", "aside"):
                held = [(piece.lot_id, piece.held_uhs) for piece in swept.hold(name).pieces if piece.held_uhs]
                assert merged(held) == merged([(lot.lot_id if lot else "", amount) for lot, amount in hold.queue])

    @invariant()
    def the_journal_alone_gives_every_balance(self):
        for transfer in self.book.drain():
            self.last_transfer += 1
            assert transfer.transfer_id == self.last_transfer
            sums = defaultdict(int)
            for posting in transfer.postings:
                sums[posting.asset] += posting.amount
                self.paths[posting.account] += posting.amount
            assert set(sums.values()) <= {0}, transfer
        for account in ACCOUNTS:
            lots = [lot for lot in self.book.lots.values() if lot.account_id == account]
            assert self.paths[f"cust/{account}/available"] == sum(lot.free_uhs for lot in lots) >= 0
            assert self.paths[f"cust/{account}/held"] == self.book.accounts[account].held_uhs >= 0
            assert self.paths[f"cust/{account}/debt"] == -self.book.accounts[account].owed_uhs <= 0
            assert self.book.accounts[account].written_off_uhs == self.oracle.lost[account]
        for name in ("issued", "redeemed", "breakage", "written_off"):
            assert self.paths[f"op/op/{name}"] == self.book.tokens_uhs[name]


def merged(parts):
    """Neighbours of the same lot as one."""
    out = []
    for lot_id, amount in parts:
        before = out.pop()[1] if out and out[-1][0] == lot_id else 0
        out.append((lot_id, before + amount))
    return out


TestBookAgainstTheOracle = BookMachine.TestCase
TestBookAgainstTheOracle.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
