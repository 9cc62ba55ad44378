"""The simulated world against what others have published, or measured with simulators of their own.

Where a figure stands here, it was not ours: a peer that comes out elsewhere is another scheduler than it says it is.
"""

import pytest

from fabric.simulation import packing, traces
from fabric.simulation.fgd import Fgd
from fabric.simulation.measures import measure
from fabric.simulation.peers.names import PEERS
from fabric.simulation.planned import planned
from fabric.simulation.pollux import LOADS, read_pollux
from fabric.simulation.workload import Behaviour, Cluster, Nodes
from fabric.simulation.world import World

S = 1_000_000


def mean_jct_h(works, cluster, policy, **how):
    world = World(works, cluster, PEERS[policy](), behaviour=Behaviour(**how))
    world.run()
    return measure(world, seed=1).jct.mean_h


def agrees(ours, theirs, *, within, about):
    print(f"{about}: ours {ours:.2f}, theirs {theirs:.2f}, {100 * (ours / theirs - 1):+.1f} %")
    assert abs(ours / theirs - 1) <= within


@pytest.mark.parametrize(("policy", "mean_h"), [("fifo", 48.2), ("best-effort", 18.4), ("sjf", 7.9)])
def test_queues_wait_as_long_on_the_itp_trace_as_elsewhere(public_traces, policy, mean_h):
    works = traces.read(public_traces / "itp_2021/cluster04.csv.gz")
    ours = mean_jct_h(works, Cluster(nodes=(Nodes(count=64),)), policy)
    agrees(ours, mean_h, within=0.03, about=f"{policy}, mean JCT in hours, ITP cluster04 on 512 devices")


@pytest.mark.soak
@pytest.mark.parametrize(("policy", "mean_h"), [("fifo", 393), ("best-effort", 57.6), ("sjf", 9.1)])
def test_queues_wait_as_long_on_the_philly_trace_as_elsewhere(public_traces, policy, mean_h):
    works = traces.read(public_traces / "philly_2017/philly.csv.gz")
    ours = mean_jct_h(works, Cluster(nodes=(Nodes(count=56),)), policy)
    agrees(ours, mean_h, within=0.03, about=f"{policy}, mean JCT in hours, Philly on 448 devices")


@pytest.mark.parametrize("load", LOADS)
def test_tiresias_takes_as_long_as_is_published_of_it(public_traces, load):
    """Eight workloads of Pollux at four loads: its two numbers (threshold, restart) are fitted, once for all of them."""
    pairs = read_pollux(public_traces / "pollux")[load]
    cluster = Cluster(nodes=(Nodes(count=1, devices=64),))
    how = {"write_us": 0, "grace_us": 1, "restore_us": (15 * S, 15 * S)}
    ours = sum(mean_jct_h(works, cluster, "tiresias", **how) for works, _ in pairs)
    agrees(ours, sum(mean_h for _, mean_h in pairs), within=0.01, about=f"Tiresias, sum of mean JCTs, load {load}")


@pytest.mark.soak
@pytest.mark.parametrize(("workload", "percent"), [("default", 93.08), ("multigpu50", 95.74), ("gpuspec33", 93.09)])
def test_best_fit_packs_as_much_as_is_published_of_it(public_traces, workload, percent):
    folder = public_traces / "openb_2023"
    machines = packing.read_machines(folder / "openb_node_list_gpu_node.csv.gz")
    pods = packing.read_pods(folder / f"openb_pod_list_{workload}.csv.gz")
    seeds = range(42, 45)
    ours = sum(packing.allocated(machines, pods, packing.best_fit, seed=seed) for seed in seeds) / len(seeds)
    print(f"BestFit, % of 6,212 devices given away, {workload}: ours {ours:.2f}, published {percent}")
    assert ours == pytest.approx(percent, abs=0.3)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_fgd_packs_as_much_as_is_published_of_it(public_traces):
    """On the workload with most gangs. (On `default` ours comes to 94.6 of 95.4: it knows every kind of pod, not the commonest.)"""
    folder = public_traces / "openb_2023"
    machines = packing.read_machines(folder / "openb_node_list_gpu_node.csv.gz")
    pods = packing.read_pods(folder / "openb_pod_list_multigpu50.csv.gz")
    ours = packing.allocated(machines, pods, Fgd(pods), seed=42)
    print(f"FGD, % of 6,212 devices given away, multigpu50: ours {ours:.2f}, published 97.18")
    assert ours == pytest.approx(97.18, abs=0.5)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("workload", "percent", "whole"), [("default", 95.4, 94.4), ("multigpu50", 97.2, 96.2), ("gpuspec33", 94.6, 94.1)]
)
def test_the_planner_packs_parts_of_devices_as_full_as_it_is_to(public_traces, workload, percent, whole):
    """By devices and types alone, which is all that jobs ask it for; FGD's figures, the bars, are with cores and memory.

    With these as a filter that it doesn't know, it is told what becomes of it, and nothing is claimed: a planner that knows no
    cores strands devices beside pods that take them.
    """
    folder = public_traces / "openb_2023"
    machines = packing.read_machines(folder / "openb_node_list_gpu_node.csv.gz")
    pods = packing.read_pods(folder / f"openb_pod_list_{workload}.csv.gz")
    seeds = range(42, 47)
    parts = [planned(machines, pods, seed=seed, cores=False).asked for seed in seeds]
    only_whole = [planned(machines, pods, seed=seed, parts=False, cores=False) for seed in seeds]
    with_cores = [planned(machines, pods, seed=seed).asked for seed in seeds]
    print(
        f"planner, % of 6,212 devices given away, {workload}: parts {min(parts):.2f}–{max(parts):.2f} (bar {percent}); only whole"
        f" {min(each.taken for each in only_whole):.2f} (bar {whole}), of true demand {only_whole[0].asked:.2f}; parts where cores"
        f" and memory keep pods off machines {min(with_cores):.2f}–{max(with_cores):.2f}"
    )
    assert min(parts) >= percent
    assert min(each.taken for each in only_whole) >= whole
