from hypothesis import given
from hypothesis import strategies as st

from fabric.placement.alarms import Alarms

NAMES = st.sampled_from("abc")
TIMES = st.integers(0, 9)


@given(st.lists(st.tuples(NAMES, st.none() | TIMES) | TIMES))
def test_whatever_is_set_anew_or_dropped_each_name_is_due_at_its_last_time_and_once(steps):
    alarms, times = Alarms(), {}
    for step in steps:
        if isinstance(step, int):
            due = sorted((at, name) for name, at in times.items() if at <= step)
            assert alarms.until(step) == [name for _, name in due]
            times = {name: at for name, at in times.items() if at > step}
        elif step[1] is None:
            alarms.drop(step[0])
            times.pop(step[0], None)
        else:
            alarms.set(*step)
            times[step[0]] = step[1]
        assert alarms.first() == min(times.values(), default=None)
        assert alarms.times == times


def test_setting_one_time_again_and_again_keeps_one_entry():
    alarms = Alarms()
    for _ in range(1000):
        alarms.set("lane", 5)
    assert len(alarms._heap) == 1
