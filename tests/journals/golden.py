"""Golden journals: a small one of each release, which every later version opens and decides as it was decided.

`make golden` writes that of the version in pyproject.toml, again as long as it isn't released. A folder holds:

    sqlite/{closed,crashed}/     the journal's files, after an orderly end and as a crash leaves them
    postgres/{closed,crashed}    the same, as SQL
    instructions                 what each event told the cluster to do, in the order of the events
    about.json                   release, rules and format
    events.json state.json       what events and the state look like
    wire                         what crosses the network: the descriptor of fabric.proto

All but the last three compressed. The events are those of one run of the gate's model test, and a story of what it lacks.
"""

import asyncio
import json
import lzma
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from packaging.version import Version

from fabric import versions
from fabric.clock import VirtualClock
from fabric.gate import Gate
from fabric.gate.events import AnyEvent, Tick
from fabric.gate.state import GateState
from fabric.journal.postgres import PostgresJournal
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.store import Journal
from fabric.journal.writer import Writer
from fabric.wire import fabric_pb2
from tests.conftest import running_postgres
from tests.gate.test_gate_model import GateMachine
from tests.journals.story import story

HERE = Path(__file__).parent
STEPS = 150
RUNS = 40
SCHEMA = "golden_{how}"
HOWS = ("closed", "crashed")


def in_the_making() -> str:
    """The release that this version becomes."""
    project = tomllib.loads((HERE.parent.parent / "pyproject.toml").read_text())["project"]
    return Version(project["version"]).base_version


def releases() -> list[Path]:
    """The folders of all golden journals, oldest first."""
    return sorted((about.parent for about in HERE.glob("*/about.json")), key=lambda folder: Version(folder.name))


# -- what happens in it ------------------------------------------------------------------------------------------------


def told(events) -> set[str]:
    """What a history has of kinds and answers."""
    gate, found = Gate(), set()
    for event, now_us in events:
        decision = gate.handle(event, now_us)
        if decision.kept:
            found.add(f"{event.__struct_config__.tag} {getattr(decision.outcome, 'code', '')}")
            found |= {transfer.kind for transfer in decision.transfers}
            found |= {instruction.__struct_config__.tag for instruction in decision.instructions}
    return found


def telling(events) -> list[tuple[Any, int]]:
    """Without the ticks that led to nothing."""
    gate, left = Gate(), []
    for event, now_us in events:
        decision = gate.handle(event, now_us)
        if not isinstance(event, Tick) or decision.transfers or decision.records or decision.instructions:
            left.append((event, now_us))
    return left


def instructions_of(events) -> bytes:
    """What each event that is kept tells the cluster to do, a line each."""
    gate, lines = Gate(), []
    for event, now_us in events:
        decision = gate.handle(event, now_us)
        if decision.kept:
            lines.append(msgspec.json.encode(decision.instructions))
    return b"\n".join(lines)


def history() -> list[tuple[Any, int]]:
    """Events and their times: of many runs of the model test the one with the most in it, and a story of what it lacks."""
    runs: list[list[tuple[Any, int]]] = []

    class Run(GateMachine):
        def teardown(self):
            runs.append(self.journal)

    run_state_machine_as_test(
        Run,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            phases=(Phase.generate,),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    best = max(map(telling, runs), key=lambda run: (len(told(run)), len(run)))
    made = [*story(), *best]
    kinds = {event.__struct_config__.tag for event, _ in made}
    assert kinds == {kind.__struct_config__.tag for kind in get_args(AnyEvent)} - {"adopt_rules"}, "kinds are missing"
    return made


# -- how it is kept ----------------------------------------------------------------------------------------------------


async def write(journal: Journal, events, crashed) -> None:
    """Have a gate's writer decide them; `crashed` is called before it ends in order."""

    async def carry_out(instructions) -> None:
        pass

    clock = VirtualClock(events[0][1])
    writer = Writer(journal, restore=Gate.restore, clock=clock, carry_out=carry_out, snapshot_every=len(events) // 2)
    await writer.start()
    for event, now_us in events:
        clock.advance(us=now_us - clock.now_us())
        await writer.submit([event])
    crashed()
    await writer.close()


def schema_of(kind: Any) -> bytes:
    """What a type looks like, without what is said about it."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bare(each) for key, each in value.items() if key not in ("description", "title")}
        return [bare(each) for each in value] if isinstance(value, list) else value

    return json.dumps(bare(msgspec.json.schema(kind)), indent=1, sort_keys=True).encode() + b"\n"


def keep(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.xz").write_bytes(lzma.compress(data, preset=9))


def kept(path: Path) -> bytes:
    return lzma.decompress(path.with_name(f"{path.name}.xz").read_bytes())


def dumped(dsn: str, schema: str) -> bytes:
    """A schema as SQL, without the words that only psql knows."""
    program = shutil.which("pg_dump") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin/pg_dump")))
    command = [program, "--inserts", "--no-owner", "--no-privileges", "--schema", schema, dsn]
    said = subprocess.run(command, check=True, capture_output=True).stdout
    return b"\n".join(line for line in said.splitlines() if not line.startswith(b"\\")) + b"\n"


def unpacked(folder: Path, into: Path) -> Path:
    """The files of a SQLite journal, as they were; the journal's path."""
    for file in folder.glob("*.xz"):
        (into / file.stem).write_bytes(kept(file.with_suffix("")))
    return into / "journal.db"


def make(into: Path) -> None:
    """Write the golden journal."""
    events = history()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "journal.db"

        def keep_files(how: str) -> None:
            for file in path.parent.iterdir():
                if not file.name.endswith("-shm"):
                    keep(into / "sqlite" / how / file.name, file.read_bytes())

        asyncio.run(write(SqliteJournal(path), events, lambda: keep_files("crashed")))
        keep_files("closed")
    keep(into / "instructions", instructions_of(events))
    with running_postgres() as server:
        for how in HOWS:
            schema, kept_as = SCHEMA.format(how=how), into / "postgres" / how

            def dump(schema: str = schema, kept_as: Path = kept_as) -> None:
                keep(kept_as, dumped(server.dsn, schema))

            asyncio.run(write(PostgresJournal(server.dsn, schema=schema), events, dump))
            if how == "closed":
                dump()
    (into / "events.json").write_bytes(schema_of(AnyEvent))
    (into / "state.json").write_bytes(schema_of(GateState))
    (into / "wire").write_bytes(fabric_pb2.DESCRIPTOR.serialized_pb)
    about = {"release": into.name, "rules": versions.RULES, "format": versions.FORMAT}
    (into / "about.json").write_text(json.dumps(about) + "\n")


if __name__ == "__main__":
    target = HERE / in_the_making()
    with tempfile.TemporaryDirectory(dir=HERE) as new:
        made = Path(new) / target.name
        make(made)
        shutil.rmtree(target, ignore_errors=True)  # what was there stays until all of the new one is
        made.rename(target)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size // 1000} kB")
