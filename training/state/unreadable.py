"""What a session can't keep as no rank can read it by itself: refused when it is opened, with the remedy."""

from collections.abc import Iterable
from typing import Any

from fabric.errors import InvalidRequest


def refuse_flat(name: str, weights: Iterable[Any]) -> None:
    """Refuse a model of which what a rank holds says nothing of where in the whole it belongs."""
    if any(getattr(weight, "_fsdp_flattened", False) for weight in weights):
        raise InvalidRequest(
            f"{name} is sharded by FullyShardedDataParallel (FSDP1), whose state takes all ranks at once to read: shard it with "
            "torch.distributed.fsdp.fully_shard (FSDP2), which a session keeps, or replicate it",
            code="sharded_model",
            path=name,
        )


def refuse_scattered(name: str, optimizer: Any) -> None:
    """Refuse an optimizer whose state no rank can read by itself."""
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
        raise InvalidRequest(
            f"{name} is a ZeroRedundancyOptimizer, whose state takes all ranks at once to read: shard the model with "
            "torch.distributed.fsdp.fully_shard (FSDP2), which a session keeps, or give each rank the whole optimizer",
            code="sharded_model",
            path=name,
        )
