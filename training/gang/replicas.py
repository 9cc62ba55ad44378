"""A step of a replicated model whose result is the same bits whoever computed which part of it.

All that a micro-batch yields is laid out end to end: the gradients, the moving buffers (running statistics of
normalisation layers, for instance), the loss, and which parameters took part. That is a leaf of the fixed tree of
`training.loop.fold`. A rank folds its own leaves into a few partial sums, hands every peer that peer's slice of them, completes
its own slice, and gathers the others': for even shares twice the gradient over the wire, as an ordinary all-reduce,
whatever the size of the gang.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fabric.errors import InvalidRequest
from training.gang.buffers import Buffers
from training.gang.members import Gang
from training.loop.fold import Folding, complete
from training.loop.virtual import Plan


class Replicas:
    """Folds the micro-batches of this rank and of its peers."""

    def __init__(self, model: nn.Module, gang: Gang) -> None:
        self._gang = gang
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self._parameters:
            raise InvalidRequest("the model has no parameter that requires a gradient", code="nothing_to_train")
        self._buffers = Buffers(model)
        self._vectors: list[_Vector] = []

    def begin(self, plan: Plan) -> None:
        """A step begins."""
        self._plan = plan
        self._buffers.begin()
        for vector in self._vectors:
            vector.begin(plan, self._gang.rank)
        self._clear()

    def forward(self, *, last: bool) -> None:
        """A micro-batch begins: nothing to do, as nobody waits for anybody yet."""

    def backward(self, loss: Tensor, *, weight: float) -> None:
        """The next micro-batch of this rank becomes a leaf: its gradients, its loss, and what it left in the buffers."""
        (loss * weight).backward()
        self._buffers.look()
        self._add(loss.detach(), weight=weight)

    def skip(self, *, weight: float, step: int) -> None:  # noqa: ARG002
        """The next micro-batch has no loss: a leaf without gradients, and with what its forward left in the buffers."""
        self._clear()
        self._buffers.look()
        self._add(torch.zeros((), device=self._parameters[0].device), weight=weight)

    def _add(self, loss: Tensor, *, weight: float) -> None:
        used = torch.tensor([float(parameter.grad is not None) for parameter in self._parameters], device=loss.device)
        yielded = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in self._parameters
        ]
        yielded += [buffer * weight for buffer in self._buffers.floats()]
        yielded += [used, (loss * weight).to(used.dtype)]
        if not self._vectors:
            self._lay_out(yielded)
        for vector in self._vectors:
            vector.add(yielded)
        self._buffers.rewind()
        self._clear()

    def finish(self) -> float:
        """Complete the tree with the peers: gradients to `.grad`, buffers to the model. Returns the loss.

        Raises:
            PeerLost: a rank is gone; the buffers are those from before the step.
        """
        results: dict[int, Tensor] = {}
        with self._gang.guarded("reducing gradients"):
            for vector in self._vectors:
                results |= vector.finish(self._plan, self._gang)
            self._buffers.agree(self._gang)
        *yielded, used, loss = (results[at] for at in sorted(results))
        for parameter, gradient, times in zip(self._parameters, yielded, used.tolist(), strict=False):
            parameter.grad = gradient if times else None
        self._buffers.settle(yielded[len(self._parameters) :])
        return float(loss)

    def _lay_out(self, yielded: Sequence[Tensor]) -> None:
        """One vector a dtype; what is yielded has the same shapes at every micro-batch."""
        for dtype in dict.fromkeys(tensor.dtype for tensor in yielded):
            places = [at for at, tensor in enumerate(yielded) if tensor.dtype == dtype]
            vector = _Vector(places, yielded, world=self._gang.world)
            vector.begin(self._plan, self._gang.rank)
            self._vectors.append(vector)

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


class _Vector:
    """Everything of one dtype that a micro-batch yields, end to end, padded so that each rank gets an equal slice."""

    def __init__(self, places: Sequence[int], yielded: Sequence[Tensor], *, world: int) -> None:
        self._places = places
        self._shapes = [yielded[at].shape for at in places]
        self._sizes = [yielded[at].numel() for at in places]
        first = yielded[places[0]]
        self._padding = first.new_zeros(-sum(self._sizes) % world)
        self._whole = first.new_empty(sum(self._sizes) + self._padding.numel())
        self._folding = Folding(self._whole)
        self._room: dict[str, Tensor] = {}

    def begin(self, plan: Plan, rank: int) -> None:
        block = plan.block(rank)
        self._folding.begin(start=block.start, stop=block.stop, count=plan.count)

    def add(self, yielded: Sequence[Tensor]) -> None:
        leaf = self._folding.buffer()
        torch.cat([*(yielded[at].reshape(-1) for at in self._places), self._padding], out=leaf)
        self._folding.add(leaf)

    def finish(self, plan: Plan, gang: Gang) -> dict[int, Tensor]:
        """The sums over all leaves of all ranks, by place; valid until the next step."""
        parts = self._folding.parts()
        if gang.world == 1:
            whole = complete(dict(parts), plan.count)
        else:
            whole = self._exchange([total for _, total in parts], plan, gang)
        sums = whole.split([*self._sizes, self._padding.numel()])[:-1]
        return {at: total.view(shape) for at, total, shape in zip(self._places, sums, self._shapes, strict=True)}

    def _exchange(self, totals: Sequence[Tensor], plan: Plan, gang: Gang) -> Tensor:
        """Slice by slice: each rank completes one slice of the vector for all."""
        world, piece = gang.world, self._whole.numel() // gang.world
        nodes = [plan.nodes(rank) for rank in range(world)]
        sent = self._kept("sent", len(totals) * world, piece)
        if len(totals) == 1:
            sent = totals[0].view(world, piece)
        elif totals:
            torch.stack([total.view(world, piece) for total in totals], dim=1, out=sent.view(world, -1, piece))
        received = self._kept("received", sum(map(len, nodes)), piece)
        work = dist.all_to_all_single(
            received,
            sent,
            output_split_sizes=[len(own) for own in nodes],
            input_split_sizes=[len(totals)] * world,
            group=gang.data,
            async_op=True,
        )
        gang.finish(work, "reducing gradients")
        mine = complete(dict(zip([node for own in nodes for node in own], received, strict=True)), plan.count)
        work = dist.all_gather_single(self._whole, mine, group=gang.data, async_op=True)
        gang.finish(work, "gathering gradients")
        return self._whole

    def _kept(self, name: str, rows: int, piece: int) -> Tensor:
        """Room for so many slices, which is not given back: fresh memory costs more than what is sent."""
        kept = self._room.get(name)
        if kept is None or kept.numel() < rows * piece:
            kept = self._room[name] = self._whole.new_empty(rows * piece)
        return kept[: rows * piece].view(rows, piece)
