"""What every call works with: the gate behind a port, the key ring, the batcher, the feed, and the door's limits."""

from fabric.api.archive_shares import ArchiveShares
from fabric.api.batcher import Batcher, Decider, Straight
from fabric.api.blobs import Blobs
from fabric.api.connections import Connections
from fabric.api.feed import ChangeFeed
from fabric.api.gate_port import GatePort
from fabric.api.keys import Caller, KeyRing
from fabric.api.limits import Limits, RateLimit, StreamLimit, Turns
from fabric.api.serving_board import Board
from fabric.api.slow_work import Lengthy
from fabric.clock import Clock, SteadyClock
from fabric.errors import NotFound
from fabric.gate.key_scopes import KeyScope
from fabric.gate.questions import BalanceOf, JobOf
from fabric.gate.views import BalanceView, JobView
from fabric.notifications.desk import NoticeDesk
from fabric.payments.by_hand import Operator, Sandbox
from fabric.payments.desk import PaymentDesk
from fabric.payments.port import Takers
from fabric.units import AccountId, JobId


class ApiService:
    """The state that calls share. `sandbox_payments` lets customers top themselves up: never where money is real."""

    def __init__(
        self,
        port: GatePort,
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        sandbox_payments: bool = False,
        payments: Takers | None = None,
        batched: bool = True,
        notices: NoticeDesk | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            port: the gate.
            limits: what one caller may ask for.
            clock: what keys expire by.
            sandbox_payments: as above.
            payments: who takes payments here; None = whoever stands for them where nobody does.
            notices: where accounts' endpoints are kept; None = this door has none.
            batched: gather what arrives while the gate is busy into one call, where each call costs a hop.
        """
        self.port = port
        self.limits = limits or Limits()
        self.clock = clock or SteadyClock()
        self.keys = KeyRing(port, clock=self.clock)
        self.rate = RateLimit(per_s=self.limits.requests_per_s)
        self.bytes = RateLimit(per_s=self.limits.log_bytes_per_s)
        self.checkpoint_bytes = RateLimit(per_s=self.limits.checkpoint_bytes_per_s)
        self.fetches = StreamLimit(
            most=self.limits.checkpoints,
            what="checkpoints on their way to you",
            remedy="wait for one of them",
            code="too_many_fetches",
            retry_after_s=5,
        )
        self.streams = StreamLimit(most=self.limits.streams)
        self.updates = RateLimit(per_s=self.limits.updates_per_s)
        self.histories = StreamLimit(most=self.limits.histories, retry_after_s=1)
        self.calls = StreamLimit(
            most=self.limits.calls,
            what="calls in hand",
            remedy="wait for some to end",
            code="too_many_calls",
            retry_after_s=1,
        )
        self.reading = Turns(at_once=self.limits.messages)
        self.guesses = RateLimit(per_s=self.limits.guesses_per_s)
        self.gate: Decider = Batcher(port) if batched else Straight(port)
        self.feed = ChangeFeed(port)
        self.blobs = Blobs(port, limits=self.limits, now_us=self.clock.now_us)
        self.shares = ArchiveShares(port, limits=self.limits)
        self.lengthy = Lengthy()
        self.board = Board(self.clock)
        self.sandbox_payments = sandbox_payments
        by_hand = (Sandbox(), Operator(self.clock.now_us)) if sandbox_payments else (Operator(self.clock.now_us),)
        self.desk = PaymentDesk(port.decide, port.ask, payments or by_hand, now_us=self.clock.now_us)
        """Where payments are asked for, taken and refunded."""
        self.notices = notices
        self.connections: Connections | None = None
        """Who is connected, once it stands open."""

    async def job(self, job_id: str, caller: Caller) -> JobView:
        """A job that the caller may see. Another's is answered like one that doesn't exist."""
        job = await self.port.ask(JobOf(job_id=JobId(job_id), account_id=caller.scope))
        if not isinstance(job, JobView) or not await self.sees(caller, job):
            raise NotFound(f"there is no job {job_id!r}", job=job_id)
        return job

    async def sees(self, caller: Caller, job: JobView) -> bool:
        """Whether a job of the account that the caller sees is the business of the caller's key."""
        if not caller.own_jobs_only or job.key_id == caller.key_id:
            return True
        return caller.may(KeyScope.HOST) and await self.keys.is_operators(job.key_id)

    async def job_to_change(self, job_id: str, caller: Caller) -> JobView:
        """A job that the caller may end, pause, save and the like.

        Raises:
            NotFound: it doesn't see one.
            PermissionDenied: it sees it, and that is all.
        """
        job = await self.job(job_id, caller)
        caller.check_may_change(job)
        return job

    async def balance(self, account_id: AccountId) -> BalanceView:
        """An account's balance, if there is such an account."""
        found = await self.port.ask(BalanceOf(account_id=account_id))
        if not isinstance(found, BalanceView):
            raise NotFound(f"there is no account {account_id!r}", account=account_id)
        return found

    async def check_customer(self, caller: Caller) -> None:
        """Whom an operator acts for is there: of nobody's things there would be none to see, which looks like an answer."""
        if caller.operator and caller.scope is not None:
            await self.balance(caller.scope)

    async def close(self) -> None:
        await self.feed.close()
