"""What is known of kinds of devices: the makers' word at first, then what was measured at this very run."""

import pytest

from fabric.errors import InvalidRequest
from training.gang.mixing import Mix
from training.gang.pace import Pace
from training.gang.session import Together
from training.gang.shares import Shares

KINDS = ("H100", "A100")


def noted(pace, *, laps_us, shares=(12, 4), ended_us=None, times=5):
    for _ in range(times):
        pace.note(laps_us, shares=shares, ended_us=max(laps_us) if ended_us is None else ended_us)
    return pace


def test_before_its_first_step_a_gang_is_judged_by_the_makers_figures():
    assert Pace(KINDS).admit(mix=Mix.SAME_VENDOR, count=64).efficiency >= 0.85
    with pytest.raises(InvalidRequest) as refused:
        Pace(KINDS).admit(mix=Mix.NEVER, count=64)
    assert refused.value.code == "mix_not_asked"


def test_a_gang_of_one_kind_is_not_judged():
    assert Pace(("H100", "H100")).admit(mix=Mix.NEVER, count=2) is None


def test_what_was_measured_goes_with_the_checkpoint_and_decides_about_the_next_attempt():
    """Twelve micro-batches in 0.12 s beside four in 0.4 s: with so few to share out, much would be wasted."""
    told = noted(Pace(KINDS), laps_us=(120_000, 400_000)).told()
    assert told["speeds"] == pytest.approx({"H100": 100.0, "A100": 10.0})
    again = Pace(("A100", "H100"))
    again.take(told)
    assert again.admit(mix=Mix.SAME_VENDOR, count=64).efficiency > 0.9
    with pytest.raises(InvalidRequest) as refused:
        again.admit(mix=Mix.SAME_VENDOR, count=4)
    assert refused.value.code == "mix_inefficient"
    assert "1 × H100 alone gives" in refused.value.message


def test_communication_that_the_gang_was_seen_to_expose_counts_against_it():
    slow = noted(Pace(KINDS), laps_us=(120_000, 120_000), ended_us=200_000)
    with pytest.raises(InvalidRequest) as refused:
        slow.admit(mix=Mix.SAME_VENDOR, count=16)
    assert refused.value.code == "mix_inefficient"


def test_waiting_for_something_else_now_and_then_is_no_communication():
    pace = noted(Pace(KINDS), laps_us=(120_000, 120_000), ended_us=900_000)
    noted(pace, laps_us=(120_000, 120_000), ended_us=121_000, times=1)
    assert pace.told()["exposed_s"] == pytest.approx({"A100+H100": 0.001})


def test_laps_that_nobody_could_tell_teach_nothing():
    assert noted(Pace(KINDS), laps_us=(0, 400_000)).told() == {"speeds": {}, "exposed_s": {}}


class Alone:
    """The one rank of a gang that is looked at."""

    world, rank = 2, 0


def resumed(monkeypatch, *, step, mix=Mix.SAME_VENDOR, shares=4):
    """A rank of H100 + A100, with what was learned of them, at the step it would go on from."""
    told = noted(Pace(KINDS), laps_us=(120_000, 400_000)).told()
    rank = Together(Alone, mix=mix)
    rank._pace = Pace(KINDS)
    rank._shares = Shares(shares, world=2, rank=0)
    monkeypatch.setattr(rank, "_everyones", lambda own: [own, own])
    rank.check_resumed(step, told)


def test_a_gang_that_ran_goes_on_after_a_pause_however_slow_it_is(monkeypatch, capsys):
    resumed(monkeypatch, step=7)
    assert "1 × H100 alone gives" in capsys.readouterr().err


def test_a_fork_that_begins_with_what_was_learned_goes_on_too(monkeypatch):
    resumed(monkeypatch, step=1)


def test_a_new_gang_that_is_not_worth_it_is_refused(monkeypatch):
    with pytest.raises(InvalidRequest) as refused:
        resumed(monkeypatch, step=0)
    assert refused.value.code == "mix_inefficient"


@pytest.mark.parametrize(("kinds", "code"), [(KINDS, "mix_not_asked"), (("H100", "910B"), "mix_across_vendors")])
def test_what_may_not_be_at_all_is_refused_before_anything_is_known(kinds, code):
    with pytest.raises(InvalidRequest) as refused:
        Pace(kinds).check(mix=Mix.NEVER if code == "mix_not_asked" else Mix.SAME_VENDOR, count=8)
    assert refused.value.code == code
    Pace(KINDS).check(mix=Mix.SAME_VENDOR, count=3)
