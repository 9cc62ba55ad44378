"""The global batch is the same on any number of ranks; where a script lets it grow, the learning rate follows by a rule."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import InvalidRequest
from training import session
from training.learning_rate import ScaledRate
from training.loop.data import feed_of
from training.loop.virtual import Plan, VirtualRanks

RULES = {"linear": 1.0, "square-root": 0.5}


@given(st.integers(1, 9), st.integers(9, 16), st.integers(16, 40), st.integers(1, 150), st.booleans())
def test_a_step_sees_the_global_batch_on_any_number_of_ranks(world, virtual, global_batch, count, streams):
    """So a gang that changes needs no rule; the same samples make each step, in whatever gang."""
    ranks, steps = VirtualRanks(virtual, global_batch), {}
    for rank in range(world):
        data = (sample for sample in range(count)) if streams else range(count)
        feed = feed_of(
            data,
            ranks,
            share=lambda _, parts, rank=rank: Plan.even(parts, world).block(rank),
            shuffle=False,
            collate=list,
        )
        for portion in feed.portions(0, {}):
            assert portion.step_samples == min(global_batch, count - portion.step * global_batch)
            steps.setdefault(portion.step, []).extend(portion.batch or [])
    assert {step: sorted(seen) for step, seen in steps.items()} == {
        step: list(range(first, min(first + global_batch, count)))
        for step, first in enumerate(range(0, count, global_batch))
    }


def optimizer(rate=0.1):
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))], lr=rate)


def schedule_of(kind, opt):
    schedulers = torch.optim.lr_scheduler
    return {
        "constant": lambda: opt,
        "cosine": lambda: schedulers.CosineAnnealingLR(opt, 40),  # reckons from the rate before
        "exponential": lambda: schedulers.ExponentialLR(opt, 0.93),
        "one cycle": lambda: schedulers.OneCycleLR(opt, 0.5, total_steps=80),
    }[kind]()


SCHEDULES = ("constant", "cosine", "exponential", "one cycle")


def plain_rates(kind, steps):
    """What the schedule alone would have."""
    opt = optimizer()
    sched, rates = schedule_of(kind, opt), []
    for _ in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        if sched is not opt:
            sched.step()
    return rates


def factors_of(batches, *, base, power, warmup):
    """By the rule as it is written: the factor of each step, from the batch of each step."""
    found, begins, since = [], 1.0, 0
    for step, batch in enumerate(batches):
        if step and batch != batches[step - 1]:
            aim = (batches[step - 1] / base) ** power
            passed = step - since
            begins = aim if passed >= warmup else begins + (aim - begins) * passed / warmup
            since = step
        aim = (batch / base) ** power
        passed = step - since
        found.append(aim if passed >= warmup else begins + (aim - begins) * passed / warmup)
    return found


@given(
    batches=st.lists(st.sampled_from([8, 16, 32, 48]), min_size=1, max_size=40),
    rule=st.sampled_from(sorted(RULES)),
    warmup=st.integers(0, 12),
    kind=st.sampled_from(SCHEDULES),
    dice=st.randoms(use_true_random=False),
)
def test_rates_follow_the_batch_whatever_evictions_come_between(batches, rule, warmup, kind, dice):
    """Also against a run that is never evicted and is told of each change: the same bits."""

    def made(batch):
        opt = optimizer()
        return opt, ScaledRate(schedule_of(kind, opt), batch=batch, base_batch=16, rule=rule, warmup_steps=warmup)

    opt, sched = made(batches[0])
    told_opt, told = made(batches[0])
    seen = []
    for step, batch in enumerate(batches):
        if step and (batch != batches[step - 1] or dice.random() < 0.3):
            kept = opt.state_dict(), sched.state_dict()
            opt, sched = made(batch)
            opt.load_state_dict(kept[0])
            sched.load_state_dict(kept[1])
        told.resize(batch)
        assert opt.param_groups[0]["lr"] == told_opt.param_groups[0]["lr"]
        assert sched.get_last_lr() == [group["lr"] for group in opt.param_groups]
        seen.append(opt.param_groups[0]["lr"])
        for each in (opt, sched, told_opt, told):
            each.step()
    factors = factors_of(batches, base=16, power=RULES[rule], warmup=warmup)
    wanted = [rate * factor for rate, factor in zip(plain_rates(kind, len(batches)), factors, strict=True)]
    assert seen == pytest.approx(wanted, rel=1e-12)


def test_a_gang_of_one_size_has_the_schedules_own_rates():
    opt = optimizer()
    sched = ScaledRate(schedule_of("cosine", opt), batch=32, base_batch=32, rule="linear", warmup_steps=5)
    for wanted in plain_rates("cosine", 30):
        assert opt.param_groups[0]["lr"] == wanted
        opt.step()
        sched.step()


@pytest.mark.parametrize("rule", RULES)
def test_a_session_keeps_the_rule_and_ends_with_the_same_bits(tmp_path, monkeypatch, rule):
    """Steps 0 to 9 on two ranks' batch, then four's, then one's: evicted often or at the changes alone."""
    sizes = {0: 16, 10: 32, 17: 8}

    def run_to(folder, stops):
        begin = 0
        for stop in [*stops, 25]:
            monkeypatch.setattr("training.state.vault._of_directories", {})  # in another process
            batch = next(size for since, size in reversed(sizes.items()) if since <= begin)
            torch.manual_seed(4)
            model = torch.nn.Linear(4, 1)
            opt = torch.optim.AdamW(model.parameters(), lr=0.01)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 30)
            sched = ScaledRate(cosine, batch=batch, base_batch=16, rule=rule, warmup_steps=4)
            run = session(model=model, opt=opt, sched=sched, directory=folder, snapshot_every_s=math.inf)
            assert run.done == begin
            for step in run.steps(stop):
                dice = torch.Generator().manual_seed(step)
                model(torch.randn(batch, 4, generator=dice)).square().mean().backward()
                opt.step()
                sched.step()
                opt.zero_grad()
            begin = stop
        return [value.tolist() for value in model.state_dict().values()], sched.state_dict()

    plain = run_to(tmp_path / "plain", [10, 17])
    seed = random.randrange(2**32)
    often = sorted({10, 17, *random.Random(seed).sample(range(1, 25), 8)})
    assert run_to(tmp_path / "often", often) == plain, f"seed {seed}"


def test_a_tensor_as_rate_stays_the_tensor_that_it_is():
    rate = torch.tensor(0.5)
    opt = optimizer(rate)
    sched = ScaledRate(opt, batch=32, base_batch=16, rule="linear", warmup_steps=0)
    assert opt.param_groups[0]["lr"] is rate
    assert rate.item() == 1.0
    sched.step()
    assert rate.item() == 1.0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rule": "cubic"}, "rule 'cubic': use linear or square-root"),
        ({"batch": 0}, "batch is 0: use a whole number, at least 1"),
        ({"base_batch": 2.5}, "base_batch is 2.5"),
        ({"warmup_steps": -1}, "warmup_steps is -1: use a whole number, at least 0"),
    ],
)
def test_a_rule_that_is_none_is_refused(changed, says):
    options = {"batch": 32, "base_batch": 16, "rule": "linear", "warmup_steps": 4} | changed
    with pytest.raises(InvalidRequest) as refused:
        ScaledRate(optimizer(), **options)
    assert says in refused.value.message
