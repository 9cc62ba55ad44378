"""Which rank this process is, by whatever launcher has started it: said in RANK and WORLD_SIZE, where all look that need it.

    mpirun -n 8 python train.py        # one world of eight, not eight of one

`torchrun` says it there by itself. What MPI's launchers say in variables of their own is put there, unless somebody has
said it already. A launcher on each node of a lease that knows nothing of the others makes a part of one world, if it is
MPI's, and is refused if it is torch's: two trainings would take themselves for the job.
"""

from collections.abc import Container, Mapping, MutableMapping, Sequence
from typing import Final, NamedTuple

from fabric.errors import InvalidRequest


class _Names(NamedTuple):
    rank: str
    world: str
    local_rank: str
    local_world: str


_OURS: Final = _Names("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_OF_MPI: Final = (
    _Names("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    _Names("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
_BY_TORCH: Final = "TORCHELASTIC_RUN_ID"
_NODES_OF_TORCH: Final = "GROUP_WORLD_SIZE"


def adopt(environment: MutableMapping[str, str], *, node: int = 0, nodes: int = 1) -> None:
    """Have RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE say which rank this process is.

    Args:
        environment: the process's.
        node: which of the job's nodes this is.
        nodes: how many there are.

    Raises:
        InvalidRequest: `launched_apart`: a launcher of torch's knows of this node alone.
    """
    if _BY_TORCH in environment:
        if nodes > 1 and _number(environment, _NODES_OF_TORCH) == 1:
            raise InvalidRequest(
                f"torch's launcher was started for one node alone on each of {nodes}: those would be {nodes} trainings that "
                "take themselves for one. Leave out --standalone, --nnodes and --rdzv-*: the job's environment says them",
                code="launched_apart",
                nodes=nodes,
            )
        return
    for names in _OF_MPI:
        rank, world, local_rank, local_world = (_number(environment, name) for name in names)
        if rank is None or world is None or world < 2 or _is_said(environment, node=node, nodes=nodes):  # noqa: PLR2004
            continue
        if local_world is None or local_rank is None:
            local_rank, local_world = rank, world
        if local_world == world:  # MPI knows of this node alone
            rank, world = node * world + rank, nodes * world
        said = (rank, world, local_rank, local_world)
        environment.update(zip(_OURS, map(str, said), strict=True))
        return


def meeting_of(
    master: tuple[str, int], *, node: int, nodes: int, command: Sequence[str] = (), given: Container[str] = ()
) -> dict[str, str]:
    """The variables by which torch's launchers, started on each of several nodes, find each other without an option.

    Args:
        master: where they meet: (address, port).
        node: which of the nodes this is.
        nodes: how many there are.
        command: what is started. One that says --standalone would wait for others where they never come.
        given: variables that the job has set itself.
    """
    if nodes == 1 or any("--standalone" in word for word in command):
        return {}
    said = {
        "PET_NNODES": str(nodes),
        "PET_NODE_RANK": str(node),
        "PET_MASTER_ADDR": master[0],
        "PET_MASTER_PORT": str(master[1]),
    }
    return {name: value for name, value in said.items() if name not in given}


def _is_said(environment: Mapping[str, str], *, node: int, nodes: int) -> bool:
    """Whether somebody has said already which rank it is, rather than which node."""
    said = _number(environment, _OURS.rank), _number(environment, _OURS.world)
    return said not in ((None, None), (node, nodes))


def _number(environment: Mapping[str, str], name: str) -> int | None:
    said = environment.get(name, "")
    return int(said) if said.isdecimal() else None
