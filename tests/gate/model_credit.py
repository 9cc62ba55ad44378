"""A rule about what is used on credit while prices change: nothing else gets there by chance, for tokens are met first."""

from hypothesis import strategies as st
from hypothesis.stateful import rule

from fabric.gate.events import HoldMode, LeaseFinished, LeaseOutcome, LeaseStarted, Metered, Sample
from fabric.ledger import Service
from tests.gate.driver import USES
from tests.gate.model_jobs import ClusterRules, JobRules
from tests.gate.model_money import HoldRules, MoneyRules
from tests.gate.world import S

WHO = "cyd"
"""The only one with credit."""


class CreditRules(MoneyRules, HoldRules, JobRules, ClusterRules):
    """Tokens are used up, what runs then runs on credit, and is metered late."""

    @rule(
        before=st.sampled_from([10, 60]),
        after=st.sampled_from([10, 60]),
        dear=st.booleans(),
        later=st.sampled_from([None, 5]),
        seconds=st.sampled_from([100, 300]),
        ends=st.booleans(),
    )
    def owe(self, *, before, after, dear, later, seconds, ends):
        """A job begins on credit, then other prices do, and one sample tells of its use under both."""
        for use in USES:
            lots, _ = self.money.spendable(WHO, use, self.latest)
            if free := sum(lot.free for lot in lots) // S:
                self.authorize(WHO, free, use, 60, None)
                self.word(pick=0, step=1, used=free, more=0, ttl=None, verb="settle", thief=False)
        asked = {"account": WHO, "types": ("H100",), "gang": (1, None), "service": Service.TRAINING}
        self.submit(seconds=seconds, hold=HoldMode.FULL, more={}, keyed=False, named=False, **asked)
        name = next((name for name, record in self.state.leases.items() if record.lease.job_id == f"j{self.made}"), "")
        if not name or self.state.leases[name].state != "starting":
            return
        self.do(LeaseStarted(lease_id=name))
        self.now = self.latest + before * S
        said = {"steep": False, "channel": self.channel, "policy": None, "dated": ("catalogue",)}
        self.configure(bad=None, dear=dear, later=later, **said)
        self.now = self.latest + after * S
        used = (before + after) * S
        self.do(Metered(samples=(Sample(lease_id=name, seq=1, window_us=used, busy_us=used),)))
        if ends:
            self.do(LeaseFinished(lease_id=name, outcome=LeaseOutcome.LOST))
