"""Checkpoints that become another's newest: rolled back to within a job, or forked into another job."""

import secrets

import msgspec

from fabric.checkpoints.log import Log, View
from fabric.checkpoints.records import Claim, Manifest, Retirement
from fabric.checkpoints.shelf import Shelf
from fabric.checkpoints.stores import Store
from fabric.errors import Conflict, NotFound, PermissionDenied
from fabric.storage.keys import checked_key


def below(tenant: str, prefix: str) -> str:
    """The prefix, if it lies below the tenant's.

    Raises:
        InvalidRequest: it is no key.
        PermissionDenied: it lies elsewhere.
    """
    if tenant and not checked_key(prefix).startswith(f"{checked_key(tenant)}/"):
        raise PermissionDenied(f"{prefix} is not below {tenant}", code="not_your_prefix", prefix=prefix)
    return checked_key(prefix)


def of_step(standing: tuple[Manifest, ...], step: int | None, *, prefix: str) -> Manifest:
    """The newest of that step, or the newest of all.

    Raises:
        NotFound: there is none; says which there are.
    """
    for found in standing:
        if step in (None, found.step):
            return found
    there = ", ".join(str(found.step) for found in standing) or "none"
    wanted = "" if step is None else f" of step {step}"
    raise NotFound(f"{prefix} has no checkpoint{wanted}: it has {there}", code="no_such_checkpoint", step=step)


def rolled_back(view: View, target: Manifest) -> Manifest:
    """The record that makes `target` the newest and voids all after it; it fences whoever runs.

    Raises:
        NotFound: the target doesn't stand any more.
    """
    if target.slot not in {found.slot for found in view.manifests}:
        raise NotFound(f"the checkpoint of step {target.step} was deleted meanwhile", code="no_such_checkpoint")
    return msgspec.structs.replace(
        target,
        slot=view.head + 1,
        epoch=max(found.epoch for found in view.standing),
        attempt="rollback",
        writer=secrets.token_hex(6),
        stands=tuple(
            sorted(found.slot for found in view.standing if not isinstance(found, Manifest) or found.slot < target.slot)
        ),
        origin=f"rollback to step {target.step}",
    )


def thinned(view: View, *, keep: int, claim: Claim | None, prefix: str) -> Retirement:
    """The record that voids all but the newest `keep`. It would fence whoever runs, so none may have begun since `claim`.

    Raises:
        Conflict: one has (`job_runs`).
    """
    if view.claim != claim:
        raise Conflict("an attempt of the job has begun: pause it, and delete then", code="job_runs")
    stay = {found.slot for found in view.manifests[:keep]}
    return Retirement(
        prefix=prefix,
        slot=view.head + 1,
        epoch=max((found.epoch for found in view.standing), default=0),
        attempt="thinned",
        writer=secrets.token_hex(6),
        stands=tuple(
            sorted(found.slot for found in view.standing if not isinstance(found, Manifest) or found.slot in stay)
        ),
    )


def voided(view: View, *, prefix: str) -> Retirement:
    """The record that voids all there is; it fences whoever runs."""
    return Retirement(
        prefix=prefix,
        slot=view.head + 1,
        epoch=max((found.epoch for found in view.standing), default=0),
        attempt="rollback",
        writer=secrets.token_hex(6),
        stands=tuple(sorted(found.slot for found in view.standing if isinstance(found, Claim))),
    )


def check_unused(store: Store, prefix: str) -> None:
    """Refuse to fork into a job that has checkpoints.

    Raises:
        Conflict: it has (`fork_target_in_use`).
    """
    _check_unused(Log(store, prefix).view(), prefix)


def forked_below(shelf: Shelf, source: Manifest, *, to_prefix: str) -> None:
    """`forked` for what lies below a job, unless that was done by a call before."""
    try:
        forked(shelf, source, to_prefix=to_prefix)
    except Conflict as error:
        if error.code != "fork_target_in_use":
            raise


def forked(shelf: Shelf, source: Manifest, *, to_prefix: str) -> Manifest:
    """Copy the shards below another prefix and commit them there as its first checkpoint."""
    log = Log(shelf.store, to_prefix)
    draft = f"{0:08d}-{source.step}-{secrets.token_hex(6)}-fork"
    shards = tuple(msgspec.structs.replace(shard, key=f"data/{draft}/{shard.name}") for shard in source.shards)
    target = Shelf(shelf.store, None, to_prefix)
    try:
        for shard, copied in zip(source.shards, shards, strict=True):
            shelf.store.copy(f"{shelf.prefix}/{shard.key}", f"{to_prefix}/{copied.key}")
    except BaseException:
        target.delete(draft)
        raise
    first = msgspec.structs.replace(
        source,
        prefix=to_prefix,
        epoch=0,
        attempt="fork",
        writer=secrets.token_hex(6),
        draft=draft,
        shards=shards,
        stands=(),
        origin=f"fork of step {source.step} of {source.prefix}",
    )
    try:
        made = log.append(lambda view: _first(view, first))
    except Conflict:  # at any other end nobody knows whether the record is there, so the shards stay
        target.delete(draft)
        raise
    assert isinstance(made, Manifest)
    return made


def _first(view: View, manifest: Manifest) -> Manifest:
    _check_unused(view, manifest.prefix)
    return msgspec.structs.replace(manifest, slot=1)


def _check_unused(view: View, prefix: str) -> None:
    if view.records:
        raise Conflict(f"{prefix} has checkpoints of its own: fork into a new job", code="fork_target_in_use")
