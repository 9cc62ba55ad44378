"""The checkpoints of one job: saved as shards, committed by one record, verified before use, fenced by epoch.

    checkpoints = Checkpoints(store, prefix="jobs/acme/j-1/checkpoint", epoch=lease.epoch, attempt_id=lease.lease_id)
    checkpoints.claim()                                  # from now on no older attempt can commit
    if (found := checkpoints.load()) is not None:        # the newest that is whole
        manifest, shards = found
    draft = checkpoints.begin(step=140)
    draft.put("model", data)                             # any rank, any thread; a file or bytes
    checkpoints.commit(draft, meta={"cursor": 35840})    # durable on return

It knows neither torch nor Ray, nor what a shard holds. Below the prefix lie `data/<draft>/<shard>` and `log/<slot>`
(see `log`), and in `sessions/<name>` the same of each state that the job keeps `below`, one begun after the other. A checkpoint may have any number of shards; its manifest at most 64 MiB (some 300,000 shards), a shard what
the store takes (5 TiB in a bucket, in parts of at least 16 MiB).
"""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from fabric.checkpoints import moving, retention
from fabric.checkpoints.claiming import Writer, admitted, claim_after
from fabric.checkpoints.directory import DirectoryStore
from fabric.checkpoints.draft import Draft
from fabric.checkpoints.log import Log
from fabric.checkpoints.records import Manifest, Shard, check_model, other_version, plain_meta
from fabric.checkpoints.shelf import Shelf
from fabric.checkpoints.stores import Quota, Store
from fabric.errors import CheckpointDamaged, FabricError, InvalidRequest, NotFound
from fabric.storage.keys import checked_key

STEP_MAX: Final = 2**63 - 1
_BELOW: Final = "sessions"
_KEPT: Final = 2
"""How many checkpoints stay: the newest, and one to fall back to."""


class Checkpoints:
    """One process's hold on its job's checkpoints.

    All ranks of an attempt share `epoch` and `attempt_id`, and write shards; one of them claims and commits. Should it
    die, another rank may commit in its place, by which it takes the claim over: the first is fenced from then on.
    """

    def __init__(
        self,
        store: Store,
        *,
        prefix: str,
        epoch: int = 0,
        attempt_id: str = "",
        local: DirectoryStore | None = None,
        model: str = "",
        keep: int = _KEPT,
        every: int = 0,
        tenant: str = "",
        quota: Quota | None = None,
        on_durable: Callable[[Manifest, int], None] | None = None,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            store: where they are durable.
            prefix: the job's own: nothing is ever read or written outside of it.
            epoch: of the lease; a higher one fences a lower one. 0 = one more than the last, found out by `claim`: then
                ranks that share an attempt are given what came of it.
            attempt_id: a plain segment that tells attempts of one epoch apart; "" = a random one.
            local: memory or a local disk that shards are staged in first, and read from again if they are still whole.
            model: what the state is of; a checkpoint that says something else is refused.
            keep: how many stay, the newest ones, at least 1.
            every: besides, those whose step is a multiple of this stay; 0 = none.
            tenant: a prefix that `prefix` and the target of a fork must lie below; "" = any.
            quota: how much may be kept; None = no bound.
            on_durable: told of every commit, with the µs from `begin` on.
        """
        retention.check_policy(keep=keep, every=every)
        self.store = store
        self.prefix = moving.below(tenant, prefix)
        attempt_id = checked_key(attempt_id or secrets.token_hex(6))
        self.writer = Writer(epoch=epoch, attempt=attempt_id, id=secrets.token_hex(8))
        self.tenant = tenant
        self.local = local
        self.model = model
        self.keep = keep
        self.every = every
        self.quota = quota
        self.on_durable = on_durable
        self.yields = False
        """Whether it leaves saving to any other process of its attempt that has begun to, rather than take the claim over."""
        self.passed_over: tuple[str, ...] = ()
        """What the last look for the newest one found damaged, and why."""
        self.log = Log(store, self.prefix)
        self.shelf = Shelf(store, local, self.prefix)
        self._claimed = False
        self._swept = False
        self._began: dict[str, int] = {}
        self._offered: set[str] = set()

    @property
    def epoch(self) -> int:
        """Of this attempt; 0 = not known before it has claimed."""
        return self.writer.epoch

    def below(self, name: str) -> "Checkpoints":
        """The checkpoints of another state of this job, as this attempt's: `rollback`, `recover` and `fork` go through all.

        A job is taken to come to what lies below after what lies here: an older step of this is before all of that.
        """
        return Checkpoints(
            self.store, prefix=f"{self.prefix}/{_BELOW}/{checked_key(name)}", epoch=self.epoch,
            attempt_id=self.writer.attempt, local=self.local, model=self.model, keep=self.keep, every=self.every,
            tenant=self.tenant, quota=self.quota, on_durable=self.on_durable,
        )  # fmt: skip

    def sessions(self) -> list[str]:
        """The names of what the store holds below."""
        return self.store.folders(f"{self.prefix}/{_BELOW}")

    def span(self, shard: Shard, start: int, size: int) -> bytes:
        """So many bytes of a shard as they lie in the store, of which nothing is known yet: whoever has them all compares.

        Raises:
            NotFound: it is not there, be it that newer checkpoints have taken its place.
        """
        return self.store.span(f"{self.prefix}/{shard.key}", start, size)

    def _all_below(self, tier: Store | None) -> list["Checkpoints"]:
        """Those of which the store, or this machine, holds anything."""
        return [] if tier is None else [self.below(name) for name in tier.folders(f"{self.prefix}/{_BELOW}")]

    def claim(self) -> None:
        """Begin the attempt: from now on older ones can't commit, nor can another process of this one.

        Raises:
            Conflict: a newer attempt has begun, or it yields (`fenced`), or another of its epoch has (`already_claimed`).
        """
        if not self._claimed:
            self.log.view()
            made = self.log.append(lambda view: claim_after(view, self.writer, prefix=self.prefix, yields=self.yields))
            self.writer = replace(self.writer, epoch=made.epoch)
            self._claimed = True
            with suppress(FabricError):  # attempts that end before they save would leave one each
                self.log.delete(self.log.seen.void_claims)

    def begin(self, step: int, *, token: str = "") -> Draft:
        """A new checkpoint. Ranks that write one together give the same `token`, new for every save of an attempt."""
        if not 0 <= step <= STEP_MAX:
            raise OverflowError(f"step {step}: count from 0 to at most {STEP_MAX}")
        if self.epoch == 0:
            self.claim()
        id_ = f"{self.epoch:08d}-{step}-{token or secrets.token_hex(6)}-{self.writer.attempt}"
        self._began[id_] = time.monotonic_ns()
        return Draft(self.store, prefix=self.prefix, id=checked_key(id_), step=step, local=self.local, quota=self.quota)

    def stage(self, draft: Draft, *, meta: Mapping[str, Any] | None = None, world: int = 1) -> Manifest:
        """Make a draft whose shards are all on this machine survive the process, not the machine: see `staged`."""
        if self.local is None:
            raise InvalidRequest("staging needs a local tier: give Checkpoints a `local`", code="no_local_tier")
        parent, _ = self.log.view().tip
        manifest = self._manifest(draft, draft.shards, slot=parent, meta=meta, world=world)
        self.shelf.stage(manifest)
        return manifest

    def commit(
        self, draft: Draft, *, meta: Mapping[str, Any] | None = None, shards: Iterable[Shard] = (), world: int = 1
    ) -> Manifest:
        """Make the draft the newest checkpoint: durable on return. One rank commits, with the `shards` of the others.

        What this makes superfluous is deleted then; by an attempt's first commit, what earlier attempts left, too.

        Raises:
            Conflict: another attempt has begun (`fenced`): this one is over, and nothing was committed.
            Unavailable: the store refuses; InvalidRequest: it is too large. What was committed before is untouched.
        """
        found = {*draft.shards, *shards}
        if self.quota is not None:
            self.quota.check_checkpoint(sum(shard.size for shard in found))
        manifest = self._manifest(draft, found, slot=0, meta=meta, world=world)
        if draft.is_staged and len(found) == len(draft.shards):
            self.claim()
            parent, _ = self.log.seen.tip
            self.shelf.stage(msgspec.structs.replace(manifest, slot=parent))
        draft.upload()
        return self._commit(manifest)

    def settled(self, manifest: Manifest) -> None:
        """For ranks that didn't commit: this checkpoint is durable, so older near copies may go."""
        self._began.pop(manifest.draft, None)
        for draft in self.shelf.local_drafts() - {manifest.draft, *self._began}:
            if retention.age_of(draft) <= (self.epoch, manifest.step):
                self.shelf.delete_local(draft)

    def forget_near(self) -> None:
        """The job is over: nobody will resume it from this machine's own copies."""
        if self.local is not None:
            self.local.delete_folder(self.prefix)

    def abandon(self, draft: Draft) -> None:
        """Forget a draft that will not be committed, and what was written of it.

        After a commit whose answer was lost nobody knows whether its record is there, so the shards stay.
        """
        self._began.pop(draft.id, None)
        if draft.id not in self._offered:
            self.shelf.delete(draft.id)

    def newest(self, *, verify: bool = True) -> Manifest | None:
        """The newest checkpoint whose every shard is what was saved; None if nothing was ever saved.

        Raises:
            CheckpointDamaged: there are some, and none is whole.
            Conflict: it is of another model (`checkpoint_of_another_model`) or format (`checkpoint_version`).
        """
        return self.newest_passing(self.verify if verify else lambda _: None)

    def load(self) -> tuple[Manifest, dict[str, bytes]] | None:
        """The newest checkpoint that is whole, with all its shards in memory, read once; raises like `newest`."""
        shards: dict[str, bytes] = {}

        def read(manifest: Manifest) -> None:
            shards.clear()
            shards.update((shard.name, self.read(manifest, shard.name)) for shard in manifest.shards)

        manifest = self.newest_passing(read)
        return None if manifest is None else (manifest, shards)

    def newest_passing(self, check: Callable[[Manifest], None]) -> Manifest | None:
        """The newest that `check` does not call damaged (by raising `CheckpointDamaged`); raises like `newest`."""
        view, bad = self.log.view(), dict[int, str]()
        while (manifest := next((one for one in view.manifests if one.slot not in bad), None)) is not None:
            check_model(manifest, self.model)
            try:
                check(manifest)
            except CheckpointDamaged as error:
                view = self.log.view()  # a newer commit may have deleted it under our eyes; that is no damage
                if manifest.slot in {one.slot for one in view.manifests}:
                    bad[manifest.slot] = f"step {manifest.step} (record {manifest.slot}): {error.message}"
                continue
            break
        bad |= {slot: f"record {slot}: not what was written" for slot in view.damaged}
        self.passed_over = tuple(bad[slot] for slot in sorted(bad, reverse=True))
        if manifest is not None:
            return manifest
        if bad:
            raise CheckpointDamaged(
                f"none of the checkpoints of {self.prefix} is whole: {'; '.join(self.passed_over[:5])}. Restore the store"
                " from a backup, or start the job anew",
                code="no_good_checkpoint",
                bad=len(bad),
            )
        if not view.records and self.store.keys(f"{self.prefix}/manifests"):
            raise other_version(self.prefix, found=0)
        return None

    def read(self, manifest: Manifest, name: str) -> bytes:
        """One shard, verified; from this machine's own copy if that is whole.

        Raises:
            CheckpointDamaged: it is not what was saved.
        """
        return self.shelf.read(manifest.shard(name))

    def fetch(self, manifest: Manifest, name: str, path: Path) -> None:
        """The same into a new file, without holding it in memory."""
        self.shelf.fetch(manifest.shard(name), path)

    def verify(self, manifest: Manifest) -> None:
        """Read every shard in the store and compare.

        Raises:
            CheckpointDamaged: one is missing, or is not what was saved.
        """
        for shard in manifest.shards:
            self.shelf.verify(shard)

    def staged(self) -> Manifest | None:
        """A checkpoint newer than every durable one, that this machine still holds whole; then `commit_staged` it."""
        found = self.shelf.staged()
        if found is None:
            return None
        check_model(found, self.model)
        view = self.log.view()
        parent, draft = view.tip
        return found if found.slot == parent and found.draft != draft and not view.is_void else None

    def commit_staged(self, manifest: Manifest) -> Manifest:
        """Make what an earlier process staged on this machine durable, as this attempt's; raises like `commit`."""
        self.shelf.send(manifest)
        return self._commit(manifest)

    def recover(self) -> Manifest | None:
        """Make durable what this machine still holds of an attempt that died before it could; None if it holds nothing newer.

        Raises like `commit`. What was damaged meanwhile is not recovered.
        """
        self.claim()
        for other in self._all_below(self.local):
            other.recover()
        found = self.staged()
        return None if found is None else self.commit_staged(found)

    def ls(self) -> tuple[Manifest, ...]:
        """The checkpoints that stand, newest first; their shards are not looked at."""
        return self.log.view().manifests

    def rollback(self, step: int) -> Manifest:
        """Make the newest checkpoint of this step the newest of all, and void those after it, and all that lie below.

        An attempt that runs meanwhile is fenced; so pause the job before.

        Raises:
            NotFound: none of that step stands.
            CheckpointDamaged: it is not whole any more.
        """
        target = moving.of_step(self.ls(), step, prefix=self.prefix)
        self.verify(target)
        made = self.log.append(lambda view: moving.rolled_back(view, target))
        assert isinstance(made, Manifest)
        for other in self._all_below(self.store):
            other.log.append(lambda view, prefix=other.prefix: moving.voided(view, prefix=prefix))  # type: ignore[misc]
            with suppress(FabricError):  # it is void; what can't be deleted now is by the next commit
                retention.clear(other.log, other.shelf, other.log.seen)
        return made

    def fork(self, to_prefix: str, *, step: int | None = None) -> Manifest:
        """Begin another job's checkpoints with a copy of the newest (or of a step's); made by the store itself.

        What lies below comes along with the newest: it is after any older step. Call it again if it was broken off.

        Raises:
            NotFound: there is no such checkpoint.
            Conflict: the other job has checkpoints.
            PermissionDenied: it is another tenant's.
        """
        to_prefix = moving.below(self.tenant, to_prefix)
        source = moving.of_step(self.ls(), step, prefix=self.prefix)
        self.verify(source)
        moving.check_unused(self.store, to_prefix)
        for other in self._all_below(self.store) if step is None else ():
            with suppress(NotFound):  # nothing stands there
                whole = moving.of_step(other.ls(), None, prefix=other.prefix)
                other.verify(whole)
                moving.forked_below(other.shelf, whole, to_prefix=other.prefix.replace(self.prefix, to_prefix, 1))
        return moving.forked(self.shelf, source, to_prefix=to_prefix)

    def retain(self, *, keep: int = _KEPT, every: int = 0) -> tuple[Manifest, ...]:
        """Delete all but the newest `keep` and the multiples of `every`, manifests first; what was deleted.

        Raises:
            Conflict: this attempt is fenced, so it deletes nothing.
        """
        retention.check_policy(keep=keep, every=every)
        self.claim()
        before = self.log.view().manifests
        if retention.staying(before, keep=keep, every=every) == before:
            return ()
        self.log.append(
            lambda view: retention.retirement(view, self.writer, prefix=self.prefix, keep=keep, every=every)
        )
        retention.clear(self.log, self.shelf, self.log.seen)
        left = {found.slot for found in self.log.seen.manifests}
        return tuple(found for found in before if found.slot not in left)

    def thin(self, *, keep: int) -> tuple[Manifest, ...]:
        """The same from outside of all attempts, for a job that is off its devices.

        Raises:
            Conflict: an attempt has begun meanwhile; nothing was deleted.
        """
        retention.check_policy(keep=keep, every=0)
        view = self.log.view()
        before, claim = view.manifests, view.claim
        if len(before) <= keep:
            return ()
        self.log.append(lambda view: moving.thinned(view, keep=keep, claim=claim, prefix=self.prefix))
        retention.clear(self.log, self.shelf, self.log.seen)
        return before[keep:]

    def sweep(self) -> tuple[str, ...]:
        """Delete what ended attempts left, committed or not, and never what the running one writes; which drafts."""
        drafts = self.shelf.drafts()
        view = self.log.view()
        retention.clear(self.log, self.shelf, view)
        found = retention.orphans(drafts, view)
        for draft in found:
            self.shelf.delete(draft)
        self.store.tidy(self.prefix)
        return found

    def _commit(self, manifest: Manifest) -> Manifest:
        self.claim()
        self._offered.add(manifest.draft)
        mine = msgspec.structs.replace(
            manifest, epoch=self.writer.epoch, attempt=self.writer.attempt, writer=self.writer.id
        )
        made = self.log.append(
            lambda view: retention.after(
                view, mine, claim=admitted(view, self.writer), keep=self.keep, every=self.every
            )
        )
        assert isinstance(made, Manifest)
        began = self._began.get(made.draft)
        if self.on_durable is not None:
            self.on_durable(made, 0 if began is None else (time.monotonic_ns() - began) // 1000)
        with suppress(FabricError):  # it is durable; what can't be deleted now is by the next commit
            retention.clear(self.log, self.shelf, self.log.seen)
            if self.epoch > 1 and not self._swept:
                self._swept = True
                self.sweep()
        self.settled(made)
        return made

    def _manifest(
        self, draft: Draft, shards: Iterable[Shard], *, slot: int, meta: Mapping[str, Any] | None, world: int
    ) -> Manifest:
        found = tuple(sorted(shards, key=lambda shard: shard.name))
        names = [shard.name for shard in found]
        if not found or len(set(names)) < len(names):
            raise InvalidRequest(
                f"a checkpoint needs at least one shard, and each name once: {names[:10]}", code="shards_invalid"
            )
        return Manifest(
            prefix=self.prefix,
            slot=slot,
            epoch=self.writer.epoch,
            attempt=self.writer.attempt,
            writer=self.writer.id,
            step=draft.step,
            draft=draft.id,
            shards=found,
            world=world,
            model=self.model,
            meta=plain_meta(meta),
        )
