"""The node agents, one a machine, as the gate's process calls them: they are started, found again and replaced here."""

import asyncio
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import ray
import structlog
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fabric.cluster.here import own_address, own_node
from fabric.cluster.settings import ClusterSettings
from fabric.enforcement.watchdog import Known
from fabric.inventory.nodes import Node
from fabric.node.agent import Cut, NodeAgentActor, Sight, Watch
from fabric.placement.locality import Holdings
from fabric.storage.archive import Archive
from fabric.system.disk_watch import DiskLimits
from fabric.system.guarded import Admitted, Stranger, actor_id_of, end_actor, is_ours, sealed, secret_of
from fabric.system.processes import kill
from fabric.system.unpickling import Refused
from fabric.worker.environments import Environment
from fabric.worker.strays import Living, Sighting
from fabric.worker.wheels import Prepared

_NAME_PREFIX: Final = "agent-"
_CALL_TIMEOUT_S: Final = 15.0
_COUNT_TIMEOUT_S: Final = 120.0
_WARM_TIMEOUT_S: Final = 150.0
_PROOF_WITHIN_S: Final = 60.0
PROMPT_S: Final = 2.0
"""How long is waited for what is asked again soon anyway: one that is silent must keep nothing from the others."""
_SWEEP_S: Final = 0.5
"""How long is waited for those that look for what has outlived its lease: less than there is between two such looks."""
_KILL_S: Final = 0.5
"""How long is waited for an agent that is to end what holds a device: it may do so for two seconds in all."""
_SILENT: Final = object()
WATCHDOGS: Final = 2
"""So many agents look for unleased use while the gate is silent: each asks for all of Ray's tables."""
_log = structlog.get_logger(__name__)


class Agents:
    """Agents outlive the gate's process, so that no sample is lost when it restarts."""

    def __init__(self, *, archive: Archive, settings: ClusterSettings) -> None:
        self._archive = archive
        self._settings = settings
        self._actors: dict[str, Admitted] = {}
        self._making: set[str] = set()
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._sampling: dict[str, asyncio.Task[Any]] = {}
        """By machine: what has been asked for, and not been answered yet."""
        self._sweeping: dict[str, asyncio.Task[list[int]]] = {}
        """The same, of what has outlived its lease."""
        self._watches: dict[str, dict[str, Watch]] = {}
        self.zygotes: dict[str, str] = {}
        """By machine: the socket of its zygote, "" while that is coming up."""
        self._warming: list[asyncio.Future[None]] = []
        self._watchdogs: set[str] = set()
        self._standing_down: set[str] = set()
        """The machines whose agents have heard that they are not to watch."""
        self.acknowledged: dict[str, int] = {}
        """By lease: the last sample the gate has journaled."""

    async def cover(self, nodes: Iterable[Node]) -> None:
        """Have an agent on every machine of these nodes, soon: who is not there yet keeps nobody waiting for long."""
        by_address: dict[str, list[Node]] = {}
        for node in nodes:
            by_address.setdefault(node.address, []).append(node)
        for address, there in by_address.items():
            if address not in self._actors and address not in self._starting:
                # Beside the gate, an agent is lost with nothing but the node that the gate would be lost with, too.
                ray_id = own_node() if address == own_address() else there[0].ray_id
                start = self._start(address, ray_id, by_cpu=all(node.by_cpu for node in there))
                self._starting[address] = asyncio.ensure_future(start)
        if not self._starting:
            return
        done, _ = await asyncio.wait(self._starting.values(), timeout=PROMPT_S)
        for address in [address for address, start in self._starting.items() if start in done]:
            if (error := self._starting.pop(address).exception()) is not None:
                _log.warning("agent_not_started", address=address, why=str(error)[:200])

    async def close(self) -> None:
        """Wait for nothing any more."""
        left = [*self._starting.values(), *self._sampling.values(), *self._sweeping.values()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def attach(self, address: str, watch: Watch) -> None:
        """Watch a lease's share; an agent that isn't there now is told when it is."""
        self._watches.setdefault(address, {})[watch.lease_id] = watch
        await self._tried(address, "attach", watch)

    def warm_up(self) -> None:
        """Have a zygote on every machine, soon: a job wants torch, and may come by any of them again."""
        for address in self._actors:
            if address not in self.zygotes:
                self.zygotes[address] = ""
                self._warming.append(asyncio.ensure_future(self._warm(address)))

    async def zygote_of(self, address: str) -> str:
        """The socket of a machine's zygote, once that is ready; "" if it can't be had."""
        self.zygotes[address] = await self._tried(address, "warm", within_s=_WARM_TIMEOUT_S) or ""
        return self.zygotes[address]

    async def _warm(self, address: str) -> None:
        self.zygotes[address] = await self._tried(address, "warm", within_s=_WARM_TIMEOUT_S) or ""
        if not self.zygotes[address]:
            del self.zygotes[address]

    def acknowledge(self, lease_id: str, seq: int) -> None:
        """The gate has journaled the samples up to this one."""
        self.acknowledged[lease_id] = max(seq, self.acknowledged.get(lease_id, 0))

    def forget_all_but(self, lease_ids: Container[str]) -> None:
        """Leases that are no more have nothing left to acknowledge."""
        for lease_id in [lease_id for lease_id in self.acknowledged if lease_id not in lease_ids]:
            del self.acknowledged[lease_id]

    async def samples(self) -> dict[str, list[Cut]]:
        """What every agent has to say of its leases, by lease. One that doesn't answer in time is left out, and not asked again
        until it has: it says the same until that is acknowledged.
        """
        addresses = [address for address in self._actors if self._watches.get(address)]
        for address in addresses:
            if address not in self._sampling:
                self._sampling[address] = asyncio.ensure_future(self._call(address, "samples", self._known(address)))
        asked = {address: self._sampling[address] for address in addresses}
        done, _ = await asyncio.wait(asked.values(), timeout=PROMPT_S) if asked else (set(), None)
        by_lease: dict[str, list[Cut]] = {}
        for address in [address for address, answer in asked.items() if answer in done]:
            answer = self._sampling.pop(address)
            if (error := answer.exception()) is not None:
                self._lose(address, error)
                continue
            for cut in answer.result():
                by_lease.setdefault(cut.lease_id, []).append(cut)
        machines = Counter(lease_id for watches in self._watches.values() for lease_id in watches)
        return {lease_id: cuts for lease_id, cuts in by_lease.items() if len(cuts) == machines[lease_id]}

    async def sight(self, address: str) -> Sight | None:
        """Which devices the machine's agent can read now; None if it doesn't say."""
        found = await self._tried(address, "sight", within_s=PROMPT_S)
        return found if isinstance(found, Sight) else None

    async def holdings(self, address: str, *, work_dir: str) -> Holdings | None:
        """What the machine holds of datasets; None if it doesn't say."""
        found = await self._tried(address, "holdings", work_dir)
        return found if isinstance(found, Holdings) else None

    async def has_environment(self, address: str, folder: str) -> bool:
        """Whether the machine has a job's packages installed."""
        return bool(await self._tried(address, "has_environment", folder))

    async def prepare(self, address: str, folder: str, wanted: Environment, *, within_s: float) -> Prepared:
        """Have a machine install a job's packages, if wheels are enough."""
        waits_s = within_s + _CALL_TIMEOUT_S
        found = await self._tried(address, "prepare", folder, wanted, within_s=waits_s, for_s=within_s)
        return found if isinstance(found, Prepared) else Prepared()

    async def detach(self, address: str, lease_id: str) -> list[Cut]:
        """Stop watching a lease's share: the samples that aren't acknowledged yet."""
        self._watches.get(address, {}).pop(lease_id, None)
        cuts = await self._tried(address, "detach", lease_id, acknowledged=self.acknowledged.get(lease_id, 0))
        return list(cuts or ())

    async def release(self, address: str, lease_id: str) -> tuple[list[Cut], bool]:
        """Stop watching a share whose runner stays; whether nothing else is left of it."""
        self._watches.get(address, {}).pop(lease_id, None)
        answer = await self._tried(address, "release", lease_id, acknowledged=self.acknowledged.get(lease_id, 0))
        return answer if answer is not None else ([], False)

    async def end(self, address: str, lease_id: str, *, roots: Sequence[int]) -> bool:
        """Kill what is left of a lease on a machine; whether nothing is left."""
        return bool(await self._tried(address, "end", lease_id, roots=tuple(roots)))

    async def watches(self, address: str, lease_id: str) -> bool:
        """Whether the agent there has watched the lease all the time: it would have gone with its machine, or been replaced."""
        with suppress(AttributeError):  # an agent that is older than this question
            return bool(await self._tried(address, "watches", lease_id))
        return False

    def actors(self) -> set[str]:
        """Ray's ids of the agents, and the names of those that aren't ours to call yet. From any thread."""
        return {*self._making, *(actor_id_of(actor) for actor in list(self._actors.values()))}

    async def be_heard(self, known: Known | None) -> None:
        """Say to some agents that the gate is there, and what is its own, `known` but for the address; None: that it goes. And to
        all others, until they have heard it, that they are not to watch: a gate before this one may have told them to, and
        what is this one's they would end.
        """
        chosen = set(sorted(self._actors)[:WATCHDOGS]) if known is not None else set()
        self._standing_down -= chosen
        others = (self._actors.keys() | self._watchdogs) - chosen - self._standing_down
        told: dict[str, Known | None] = dict.fromkeys(others)
        if known is not None:
            told |= {address: msgspec.structs.replace(known, address=address) for address in chosen}
        self._watchdogs = chosen
        await asyncio.gather(*(self._be_heard_by(address, said) for address, said in told.items()))

    async def _be_heard_by(self, address: str, said: Known | None) -> None:
        actor = self._actors.get(address)
        answer = await self._tried(address, "hear", said, within_s=PROMPT_S, otherwise=_SILENT)
        if said is None and answer is not _SILENT and actor is self._actors.get(address):
            self._standing_down.add(address)

    async def claimed(self) -> dict[str, set[int]]:
        """By machine: the processes that are counted to a lease. A machine that doesn't say is left out."""
        addresses = list(self._actors)
        asked = (self._tried(address, "claimed", within_s=PROMPT_S) for address in addresses)
        answers = await asyncio.gather(*asked)
        return {address: set(found) for address, found in zip(addresses, answers, strict=True) if found is not None}

    async def had(self, address: str, asked: Mapping[int, float]) -> list[int] | None:
        """Which of these processes of a machine, that were there at that time (seconds of the epoch), were a lease's; None = it
        doesn't say.
        """
        try:
            found = await self._tried(address, "had", dict(asked), within_s=PROMPT_S)
        except AttributeError:  # an agent that is older than this question
            return None
        return None if found is None else list(found)

    async def end_strays(
        self, runners: Callable[[str], Iterable[int]], living: Callable[[str], Living]
    ) -> dict[str, list[int]]:
        """Have every machine end what has outlived its lease; the numbers of those processes, by machine. One that doesn't answer
        keeps nothing from the others, and isn't asked again until it has.

        Args:
            runners: all that live on a machine, by their processes' numbers.
            living: what lives on a machine, asked after it was looked there: so nothing new is taken for nobody's.
        """
        for address in self._actors:
            if address not in self._sweeping:
                self._sweeping[address] = asyncio.ensure_future(self._swept(address, runners, living))
        asked = dict(self._sweeping)
        done, _ = await asyncio.wait(asked.values(), timeout=_SWEEP_S) if asked else (set(), None)
        ended = {}
        for address, sweep in asked.items():
            if sweep in done and self._sweeping.get(address) is sweep:  # who asked at the same time tells of it
                del self._sweeping[address]
                ended[address] = sweep.result()
        return {address: pids for address, pids in ended.items() if pids}

    async def _swept(
        self, address: str, runners: Callable[[str], Iterable[int]], living: Callable[[str], Living]
    ) -> list[int]:
        agent = self._actors.get(address)
        try:
            found: Sighting = await self._call(address, "strays", tuple(runners(address)))
        except ray.exceptions.RayActorError as error:
            if agent is self._actors.get(address):
                self._lose(address, error)  # with no lease to watch there, nobody else would find out
            return []
        except (KeyError, TimeoutError, ray.exceptions.RayError) as error:
            _log.warning("agent_silent", address=address, method="strays", why=str(error)[:200])
            return []
        now = living(address)
        over = [(stray.pid, stray.started_at) for stray in found.strays if not now.has(stray)]
        left = [lease_id for lease_id in found.watched if lease_id not in now.leases]
        if not over and not left:
            return []
        return list(await self._tried(address, "end_strays", over, over=left) or ())

    async def kill(self, address: str, pid: int) -> None:
        """Kill a process that holds a device without a lease. While no agent is there to do it, which takes seconds after one was
        lost, the gate does it itself where it is on that machine.
        """
        answer = await self._tried(address, "kill", pid, within_s=_KILL_S, otherwise=_SILENT)
        if answer is _SILENT and address == own_address():
            kill(pid)

    async def tidy(self, address: str, *, folder: str, log_file: str, log_key: str) -> bool:
        """Have a machine move a rank's log into the archive, and remove its folder; whether it has."""
        return bool(await self._tried(address, "tidy", folder, log_file, log_key))

    async def left(self, *, work_dir: str, living: tuple[str, ...]) -> dict[str, dict[str, tuple[int, ...]]]:
        """By machine, and by the name of an attempt's folder that is not among the `living`: which ranks' folders are there. A
        machine that doesn't say is left out.
        """
        addresses = list(self._actors)
        answers = await asyncio.gather(*(self._left(address, work_dir, living) for address in addresses))
        return {address: found for address, found in zip(addresses, answers, strict=True) if found is not None}

    async def _left(self, address: str, work_dir: str, living: tuple[str, ...]) -> dict[str, tuple[int, ...]] | None:
        try:
            found: dict[str, tuple[int, ...]] | None = await self._tried(address, "left", work_dir, living)
        except AttributeError:  # an agent that is older than this question
            return {}
        return found

    async def sweep(self, address: str, *, work_dir: str, living: tuple[str, ...]) -> None:
        """Have a machine remove what attempts have left there, whose folders are not among the `living`."""
        await self._tried(address, "sweep", work_dir, living)

    async def too_large(
        self, address: str, *, work_dir: str, folders: tuple[str, ...], limits: DiskLimits
    ) -> dict[str, str]:
        """Of these folders of attempts, those that take too much of the machine's disk, and why that is too much."""
        found = await self._tried(address, "too_large", work_dir, folders, limits, within_s=_COUNT_TIMEOUT_S)
        return found if isinstance(found, dict) else {}

    async def read_log(self, address: str, path: str, *, offset: int, limit: int) -> bytes:
        return bytes(await self._tried(address, "read_log", path, offset=offset, limit=limit) or b"")

    def _known(self, address: str) -> dict[str, int]:
        return {lease_id: self.acknowledged.get(lease_id, 0) for lease_id in self._watches.get(address, {})}

    async def _start(self, address: str, ray_id: str, *, by_cpu: bool) -> None:
        name = f"{_NAME_PREFIX}{address}"
        secret = secret_of(self._settings.key, name)
        self._making.add(name)
        try:
            found = await self._found(name, secret)
            self._actors[address] = found or Admitted(
                await asyncio.to_thread(self._made, name, secret, ray_id, by_cpu), secret
            )
        finally:
            self._making.discard(name)
        for watch in list(self._watches.get(address, {}).values()):
            seq = max(watch.seq, self.acknowledged.get(watch.lease_id, 0))
            await self._tried(address, "attach", msgspec.structs.replace(watch, seq=seq))

    async def _found(self, name: str, secret: bytes) -> Admitted | None:
        """The agent that runs there already. What has its name and isn't ours is ended: a job has put it there."""
        try:
            actor = Admitted(await asyncio.to_thread(ray.get_actor, name, self._settings.namespace), secret)
            if await is_ours(actor, within_s=_PROOF_WITHIN_S):
                return actor
        except ValueError:
            return None
        except (Stranger, Refused, TimeoutError, ray.exceptions.RayError) as error:
            _log.warning("agent_not_ours", name=name, why=str(error)[:200])
        await asyncio.to_thread(end_actor, name, self._settings.namespace)
        return None

    def _made(self, name: str, secret: bytes, ray_id: str, by_cpu: bool) -> Any:
        meter = "cpu" if by_cpu else self._settings.meter
        settings, address = self._settings, name.removeprefix(_NAME_PREFIX)
        closed, digest = sealed(
            secret,
            meter=meter,
            archive=self._archive,
            owns_cluster=settings.own_cluster,
            fabric=settings.fabric_id,
            address=address,
        )
        return (
            ray.remote(NodeAgentActor)
            .options(
                name=name,
                namespace=self._settings.namespace,
                lifetime="detached",
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(ray_id, soft=False),
            )
            .remote(closed, digest)
        )

    def _lose(self, address: str, why: BaseException) -> None:
        _log.warning("agent_lost", address=address, why=str(why)[:200])
        self._actors.pop(address, None)
        self.zygotes.pop(address, None)
        self._standing_down.discard(address)

    async def _tried(
        self,
        address: str,
        method: str,
        *arguments: Any,
        within_s: float = _CALL_TIMEOUT_S,
        otherwise: object = None,
        **options: Any,
    ) -> Any:
        """The call's answer, or `otherwise` if there is no agent to give one."""
        try:
            return await self._call(address, method, *arguments, within_s=within_s, **options)
        except (KeyError, TimeoutError, ray.exceptions.RayError) as error:
            _log.warning("agent_silent", address=address, method=method, why=str(error)[:200])
            return otherwise

    async def _call(
        self, address: str, method: str, *arguments: Any, within_s: float = _CALL_TIMEOUT_S, **options: Any
    ) -> Any:
        reference = getattr(self._actors[address], method).remote(*arguments, **options)
        return await asyncio.wait_for(reference, within_s)
