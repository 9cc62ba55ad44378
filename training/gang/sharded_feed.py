"""Which ways to feed a gang go with a model that no rank holds whole."""

from collections.abc import Sequence
from typing import Any

from torch.distributed.fsdp import FSDPModule

from fabric.errors import InvalidRequest
from training.gang.gradients import Reproducible
from training.state.plain import is_sharded


def check_feed(modules: Sequence[Any], how: Reproducible, *, world: int) -> None:
    """Samples are shared out among all ranks, and gradients among those of torch's data parallelism: be they the same.

    Raises:
        InvalidRequest: `bitwise_needs_replicas`, `shares_need_data_parallel`.
    """
    if how is Reproducible.BITWISE:
        raise InvalidRequest(
            "a sharded model reduces its gradients in an order of its own: use reproducible='fast', or run.steps",
            code="bitwise_needs_replicas",
        )
    meshes = [weight.device_mesh for module in modules for weight in module.parameters() if is_sharded(weight)]
    are_fsdp = all(isinstance(module, FSDPModule) for module in modules)
    if len(modules) != 1 or not are_fsdp or any(mesh.ndim > 1 or mesh.size() != world for mesh in meshes):
        raise InvalidRequest(
            "run.batches(..., global_batch=...) gives each rank samples of its own, for one model under fully_shard over all "
            "ranks: with HSDP, tensor parallelism or several models use run.steps and a loader of your own",
            code="shares_need_data_parallel",
        )


def islands_of_parts() -> InvalidRequest:
    """What to say of a sharded model on islands."""
    return InvalidRequest(
        "mix=islands trains models that every rank holds whole, and this one is sharded: replicate it, or use a gang of one "
        "kind (mix=never)",
        code="islands_need_replicas",
    )
