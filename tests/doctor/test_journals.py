"""What a release reads and writes, and whether it can go on with a journal that is there."""

import asyncio
import tomllib
from importlib import metadata
from pathlib import Path

from fabric import versions
from fabric.clock import VirtualClock
from fabric.doctor import Health, dependencies, software
from fabric.gate import Gate
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.writer import Writer
from tests.doctor.test_doctor import assert_fails


def test_it_is_told_which_release_rules_and_format_these_are():
    finding = software.tell_release()
    assert finding.health is Health.OK
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"rules {versions.RULES}" in finding.found
    assert f"format {versions.FORMAT}" in finding.found
    assert finding.found.startswith(f"token-fabric {metadata.version(project['name'])}")


async def one_event(path):
    async def carry_out(_):
        pass

    writer = Writer(SqliteJournal(path), restore=Gate.restore, clock=VirtualClock(1), carry_out=carry_out)
    await writer.start()
    await writer.close()


def test_a_journal_that_newer_rules_have_taken_over_is_found(tmp_path, monkeypatch):
    path = tmp_path / "journal.db"
    assert dependencies.check_journal(SqliteJournal(path)).health is Health.OK
    assert not path.exists(), "to look changes nothing"
    asyncio.run(one_event(path))
    finding = dependencies.check_journal(SqliteJournal(path))
    assert (finding.health, finding.found) == (Health.OK, f"taken over by rules {versions.RULES}")
    with monkeypatch.context() as later:
        later.setattr(versions, "RULES", versions.RULES + 1)
        later.setattr(versions, "SINCE", {**versions.SINCE, versions.RULES: "9.9.0"})
        asyncio.run(one_event(path))
    finding = dependencies.check_journal(SqliteJournal(path))
    assert_fails(
        finding, naming=f"taken over by rules {versions.RULES + 1}", remedy="install token-fabric 9.9.0 or later"
    )
