"""Whoever shows no key makes way for the next, oldest first."""

from fabric.system.strangers import Strangers


def test_the_oldest_makes_way_and_whoever_has_shown_the_key_does_not():
    ended = []
    strangers = Strangers(2, end=ended.append)
    strangers.come("first")
    strangers.leave("first")
    for name in ("second", "third", "fourth"):
        strangers.come(name)
    assert ended == ["second"]
    strangers.leave("second")
    strangers.end_all()
    assert sorted(ended) == ["fourth", "second", "third"]
