"""What a loop hands on from body to body comes back as it was at the end of a body: the same values, in the same place."""

import collections
import math
import sys
import time

import pytest
import torch

from fabric import context
from fabric.checkpoints import Checkpoints, DirectoryStore
from tests.training.test_loops import Evicts, batch, bits, loss_of, net
from tests.training.workload import Attempts, ended_by, linger, running, stopped
from training import session
from training.state.loop_variables import LoopVariables
from training.state.registry import Registry

STEPS = 9
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path)


class Odd(torch.Tensor):
    """A subclass that torch loads only from a pickle with all rights."""


class Broken:
    """Raises at whatever it is asked."""

    def __getattr__(self, name):
        raise RuntimeError(name)


def rounds(variables, kept):
    variables.begin(sys._getframe(1), kept)  # as the generator of a run does
    yield
    yield


Pair = collections.namedtuple("Pair", "x y")  # noqa: PYI024  # as scripts write it


def put_back(given, kept):
    """What a loop finds in a variable that it began with as `given`, while `kept` was kept."""
    value, found = given, []
    for _ in rounds(LoopVariables(), {"value": kept}):
        found.append(value)
        value = None
    return found[0]


def kept_of(value):
    """What is kept of a variable that a body has set so."""
    variables, handed, kept = LoopVariables(), None, []
    for _ in rounds(variables, {}):
        kept.append(None if handed is None else variables.now())
        handed = value
    return kept[1]


@pytest.mark.parametrize("nest", [lambda tensor: tensor, lambda tensor: [tensor, (tensor, {"x": tensor})]])
def test_a_tensor_comes_back_to_where_the_script_has_its_own(nest):
    """A CPU's batch in a model on a GPU would end the job; no GPU is needed to see it."""
    own = torch.zeros(4, device="meta", requires_grad=True)
    found = put_back(nest(own), nest(torch.ones(4)))
    first = found if isinstance(found, torch.Tensor) else found[1][1]["x"]
    assert (first.device.type, first.requires_grad) == ("meta", True)


def test_what_no_gradient_can_flow_to_is_not_asked_for_one():
    own = torch.zeros(4, requires_grad=True)
    assert put_back(own, torch.ones(4, dtype=torch.int64)).requires_grad is False
    assert put_back(own, torch.ones(4, dtype=torch.float64)).dtype is torch.float64


def test_a_tensor_that_the_script_begins_without_keeps_its_gradient():
    """As `hidden = None` before the loop: there is no tensor of the script's own to take after."""
    kept = kept_of(torch.ones(3, requires_grad=True))["handed"]
    found = put_back(None, kept)
    assert found.requires_grad
    assert torch.equal(found, torch.ones(3))
    assert put_back(None, kept_of(torch.ones(3))["handed"]).requires_grad is False


@pytest.mark.parametrize(
    ("own", "kept"),
    [
        (Pair(0, None), (1, 2.0)),
        (collections.OrderedDict(a=1), {"a": 2}),
        (collections.defaultdict(list), {"a": [1]}),
        (collections.Counter(a=1), {"a": 3}),
    ],
)
def test_a_container_of_a_kind_of_its_own_comes_back_as_that(own, kept):
    found = put_back(own, kept)
    assert type(found) is type(own)
    assert list(found) == list(kept)


def test_tensors_in_a_dict_of_extra_come_back_to_where_they_were():
    registry = Registry()
    values = {"ema": [torch.zeros(4, device="meta", requires_grad=True)], "best": math.inf}
    registry.track("extra", values)
    registry.load({"extra": {"ema": [torch.ones(4)], "best": 1.0}})
    assert (values["ema"][0].device.type, values["ema"][0].requires_grad, values["best"]) == ("meta", True, 1.0)


def test_a_tensor_with_a_gradient_in_extra_has_one_after_a_resume():
    registry, again = Registry(), Registry()
    registry.track("extra", {"late": torch.ones(2, requires_grad=True)})
    values = {}
    again.track("extra", values)
    again.load(registry.whole(registry.copied()))
    assert values["late"].requires_grad


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(lambda: torch.zeros(2).as_subclass(Odd), id="subclass"),
        pytest.param(lambda: [1, {"x": torch.zeros(2).as_subclass(Odd)}], id="nested"),
        pytest.param(lambda: torch.zeros(2, device="meta"), id="without-data"),
        pytest.param(lambda: {(1, object()): 2}, id="key"),
        pytest.param(lambda: "\ud800", id="no-text"),
        pytest.param(Broken, id="broken"),
    ],
)
@pytest.mark.parametrize("how", ["stop", "snapshot"])
def test_a_variable_that_cannot_be_kept_is_said_and_ends_no_run(attempts, capsys, odd, how):
    def train(each):
        model, handed, count = net(), odd(), 0
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        run = session(model=model, opt=opt, snapshot_every_s=0 if how == "snapshot" else math.inf)
        for step in run.steps(STEPS):
            each(step)
            _, handed = handed, odd()
            opt.zero_grad()
            loss_of(model, *batch()).backward()
            opt.step()
            count += 1
        return torch.cat([bits(model), torch.tensor([count])])

    whole = train(lambda step: None)
    evicts = Evicts(attempts, (3, 6))

    def work(job):
        evicts.job = job
        return train(evicts)

    assert torch.equal(attempts.run(work), whole)
    assert attempts.saves[-1] == STEPS
    assert "handed" in capsys.readouterr().err


@pytest.mark.parametrize("layout", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_a_sparse_variable_is_handed_on_as_it_was(attempts, layout):
    def train(each):
        model, graph = net(), layout(torch.eye(6))
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in session(model=model, opt=opt).steps(STEPS):
            each(step)
            opt.zero_grad()
            x, y = batch()
            loss_of(model, torch.sparse.mm(graph, x.T).T, y).backward()
            opt.step()
            graph = layout(graph.to_dense() * 0.9)
        return torch.cat([bits(model), graph.to_dense().reshape(-1)])

    whole = train(lambda step: None)
    evicts = Evicts(attempts, (3, 6))

    def work(job):
        evicts.job = job
        return train(evicts)

    assert torch.equal(attempts.run(work), whole)


class Told:
    """Batches that tell where they are by something that no checkpoint holds."""

    def __init__(self, state):
        self.state, self.resumed_by = state, []

    def state_dict(self):
        return self.state()

    def load_state_dict(self, state):
        self.resumed_by.append(state)

    def __iter__(self):
        for at in range(STEPS):
            yield torch.full((4, 6), float(at)), torch.arange(4) % 3


def raising():
    raise RuntimeError("not now")


@pytest.mark.parametrize("state", [object, lambda: {"at": torch.zeros(2).as_subclass(Odd)}, raising])
def test_data_whose_place_cannot_be_kept_are_read_past_what_was_seen(attempts, capsys, state):
    def train(each):
        model = net()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        run = session(model=model, opt=opt)
        for at, (x, y) in enumerate(run.batches(Told(state)), run.resumed_at):
            each(at)
            run.step(loss_of(model, x, y))
        return bits(model)

    evicts = Evicts(attempts, (3, 6))

    def work(job):
        evicts.job = job
        return train(evicts)

    assert torch.equal(attempts.run(work), train(lambda at: None))
    assert "state_dict()" in capsys.readouterr().err


def test_a_run_that_keeps_nothing_does_not_ask_the_data_where_they_are():
    model = net()
    run = session(model=model, opt=torch.optim.SGD(model.parameters(), lr=0.1))
    for x, y in run.batches(Told(raising)):
        run.step(loss_of(model, x, y))
    assert run.done == STEPS


def counted(each, *, way):
    """A count that is raised after the step's boundary, a best that an evaluation finds, and averaged weights."""
    model = net()
    mean = torch.optim.swa_utils.AveragedModel(model)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    best = {"loss": math.inf}
    run = session(model={"now": model, "mean": mean}, opt=opt, extra={"best": best}, snapshot_every_s=math.inf)
    count, lowest = run.resumed_at, math.inf

    def after(loss):
        best["loss"] = min(best["loss"], loss.item())
        mean.update_parameters(model)

    if way == "step":
        for x, y in run.batches([batch() for _ in range(STEPS)]):
            each(count)
            loss = loss_of(model, x, y)
            run.step(loss)
            count += 1
            lowest = min(lowest, loss.item())
            torch.rand(3)
            after(loss)
    else:
        for _ in run.steps(STEPS):
            each(count)
            opt.zero_grad()
            loss = loss_of(model, *batch())
            loss.backward()
            opt.step()
            if way == "boundary":
                run.boundary()
            else:
                with run.evaluation():
                    loss_of(model, *batch())
            count += 1
            lowest = min(lowest, loss.item())
            after(loss)
    return torch.cat([bits(model), bits(mean), torch.tensor([count, lowest, best["loss"]])])


@pytest.mark.parametrize("way", ["step", "boundary", "evaluation"])
@pytest.mark.parametrize("waits", [True, False])
def test_what_a_body_changes_after_the_boundary_is_part_of_it(attempts, way, waits):
    whole = counted(lambda count: None, way=way)

    def work(job):
        def each(count):
            if attempts.count <= 2 and count == (3, 6)[attempts.count - 1]:
                stopped(job)
                if waits:
                    linger()

        return counted(each, way=way)

    assert torch.equal(attempts.run(work), whole)
    assert attempts.count == 3


def test_a_stop_in_a_long_evaluation_keeps_the_step_before_it(attempts, capsys):
    """It does not come to the body's end in time: what is kept is the boundary, and it is said what that lacks."""
    job = attempts.next()
    with ended_by(context.Saved, job):
        model, worst = net(), 0.0
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        run = session(model=model, opt=opt, snapshot_every_s=math.inf)
        for step in run.steps(STEPS):
            opt.zero_grad()
            loss_of(model, *batch()).backward()
            opt.step()
            with run.evaluation():
                if step == 3:
                    stopped(job, seconds_left=30)
                    linger()
            worst = max(worst, float(step))
    assert attempts.saves == [4]
    assert "worst" in capsys.readouterr().err


def test_a_snapshot_waits_for_the_end_of_the_body(tmp_path):
    """One that was taken amid it would bring back variables of the body before."""
    checkpoints = Checkpoints(DirectoryStore(tmp_path), prefix="jobs/ada/j/checkpoint", epoch=1)
    saved = []
    job = context.Context(
        context.Place(job_id="j"), checkpoints=checkpoints, on_saved=lambda step, *_: saved.append(step)
    )
    job.begin()
    with running(job):
        model, count = net(), 0
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        run = session(model=model, opt=opt, snapshot_every_s=math.inf)
        for x, y in run.batches([batch() for _ in range(3)]):
            run.step(loss_of(model, x, y))
            if count == 1:
                job.ask_to_save()

                time.sleep(0.4)
                assert saved == []
            count += 1
            if count == 2:
                continue
    assert saved


@pytest.mark.parametrize("at", range(1, 7))
def test_gradients_that_a_loop_over_batches_collects_survive_an_eviction(attempts, at):
    """Its own optimizer's step every third batch: the batches between are no boundaries."""

    def train(each):
        model = net()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        run = session(model=model, opt=opt)
        for number, (x, y) in enumerate(run.batches([batch() for _ in range(STEPS)]), run.resumed_at):
            each(number)
            loss_of(model, x, y).backward()
            if number % 3 == 2:
                opt.step()
                opt.zero_grad()
        return bits(model)

    whole = train(lambda number: None)
    evicts = Evicts(attempts, (at,))

    def work(job):
        evicts.job = job
        return train(evicts)

    assert torch.equal(attempts.run(work), whole)
    assert attempts.count == 2


@pytest.mark.parametrize("own", [True, False])
def test_a_loop_over_batches_that_is_broken_off_keeps_its_last_step(attempts, own):
    with running(attempts.next()):
        model = net()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        run = session(model=model, opt=opt, snapshot_every_s=math.inf)
        for number, (x, y) in enumerate(run.batches([batch() for _ in range(STEPS)])):
            loss = loss_of(model, x, y)
            if own:
                loss.backward()
                opt.step()
                opt.zero_grad()
            else:
                run.step(loss)
            if number == 4:
                break
    assert (run.done, attempts.saves) == (5, [5])


def test_an_error_amid_a_body_over_batches_leaves_its_step_out(attempts, capsys):
    with running(attempts.next()):
        model = net()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        run = session(model=model, opt=opt, snapshot_every_s=math.inf)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            for number, (x, y) in enumerate(run.batches([batch() for _ in range(STEPS)])):
                opt.zero_grad()
                loss_of(model, x, y).backward()
                opt.step()
                if number == 4:
                    raise ZeroDivisionError
    assert "step 4 was half done" in capsys.readouterr().err
    assert attempts.saves == []
