"""Which rank a process is, by whatever launcher started it."""

import pytest

from fabric.errors import InvalidRequest
from fabric.launched import adopt, meeting_of

NODE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def open_mpi(rank, world, local_rank=None, local_world=None):
    said = {"RANK": rank, "SIZE": world, "LOCAL_RANK": local_rank, "LOCAL_SIZE": local_world}
    return {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in said.items() if value is not None}


def of_pmi(rank, world, local_rank=None, local_world=None):
    said = {"PMI_RANK": rank, "PMI_SIZE": world, "MPI_LOCALRANKID": local_rank, "MPI_LOCALNRANKS": local_world}
    return {name: str(value) for name, value in said.items() if value is not None}


@pytest.mark.parametrize("mpi", [open_mpi, of_pmi])
@pytest.mark.parametrize(
    ("node", "nodes", "said", "rank"),
    [
        (0, 1, (1, 4, 1, 4), (1, 4, 1, 4)),
        (0, 1, (1, 4), (1, 4, 1, 4)),
        (1, 2, (1, 4, 1, 4), (5, 8, 1, 4)),
        (0, 2, (1, 2, 1, 2), (1, 4, 1, 2)),
        (1, 2, (5, 8, 1, 4), (5, 8, 1, 4)),
        (0, 1, (0, 1, 0, 1), (0, 1, 0, 1)),
    ],
    ids=["a node", "a bare MPI", "its second node", "two of two", "an MPI over both", "alone"],
)
def test_the_ranks_of_mpi_are_one_world(mpi, node, nodes, said, rank):
    found = {**NODE, "RANK": str(node), "WORLD_SIZE": str(nodes), **mpi(*said)}
    adopt(found, node=node, nodes=nodes)
    assert tuple(int(found[name]) for name in NODE) == rank
    before = dict(found)
    adopt(found, node=node, nodes=nodes)
    assert found == before


def test_outside_the_fabric_it_is_what_mpi_says():
    found = open_mpi(1, 2, 1, 2)
    adopt(found)
    assert (found["RANK"], found["WORLD_SIZE"]) == ("1", "2")


@pytest.mark.parametrize("later", [{"RANK": "3", "WORLD_SIZE": "4"}, {"RANK": "3", "TORCHELASTIC_RUN_ID": "x"}])
def test_what_was_said_after_mpi_counts(later):
    found = {**NODE, **open_mpi(1, 2), **later}
    adopt(found)
    assert found["RANK"] == "3"


def test_torchrun_for_each_node_alone_is_refused_with_the_remedy():
    found = {**NODE, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "GROUP_WORLD_SIZE": "1"}
    adopt(dict(found), node=0, nodes=1)
    with pytest.raises(InvalidRequest, match=r"on each of 2.*--standalone") as refused:
        adopt(found, node=0, nodes=2)
    assert refused.value.code == "launched_apart"
    adopt({**found, "GROUP_WORLD_SIZE": "2"}, node=0, nodes=2)


def test_torchs_launchers_meet_over_the_nodes_of_a_job_unless_told_otherwise():
    gang = {"node": 1, "nodes": 2}
    said = meeting_of(("10.0.0.1", 7), **gang)
    assert said == {
        "PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "10.0.0.1", "PET_MASTER_PORT": "7",
    }  # fmt: skip
    assert meeting_of(("10.0.0.1", 7), node=0, nodes=1) == {}
    assert meeting_of(("10.0.0.1", 7), **gang, command=("sh", "-c", "torchrun --standalone x.py")) == {}
    assert "PET_NNODES" not in meeting_of(("10.0.0.1", 7), **gang, given=("PET_NNODES",))
