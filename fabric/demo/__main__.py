"""`python -m fabric.demo`: starts a fabric of its own, tells the story, and clears everything away."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fabric import daemon, demo
from fabric.config.cluster import shipped
from fabric.demo import story
from fabric.demo.tables import console
from fabric.errors import FabricError

STEPS: Final = 120
"""Training steps of each job: some 12 s of one core."""
INTERRUPTED: Final = 130
_NEXT: Final = (
    "fabric up --local               a cluster like this, left running\n"
    "fabric topup 10                 sandbox payment\n"
    "fabric submit --tokens 0.5 --accelerators H100:1 -- python -c 'print(42)'\n"
    "fabric top                      burn and runway, live\n"
    "fabric models                   what the OpenAI endpoint serves\n"
    "fabric down"
)


def main(argv: list[str] | None = None) -> int:
    """Run the demo; 0 if every promise was kept, 130 if it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m fabric.demo", description=demo.__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of each job")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running at the end")
    given = parser.parse_args(argv)
    try:
        _run(steps=given.steps, keep=given.keep)
    except KeyboardInterrupt:
        what = "what runs was left running" if given.keep else "everything was cleared away"
        sys.stderr.write(f"interrupted: {what}\n")
        return INTERRUPTED
    except FabricError as error:
        sys.stderr.write(f"error: {error.message} ({error.code})\n")
        return error.exit_code
    return 0


def _run(*, steps: int, keep: bool) -> None:
    state_dir = Path(tempfile.mkdtemp(prefix="fabric-demo-"))
    try:
        found = _bring_up(state_dir)
        try:
            story.tell(found, steps=steps)
        finally:
            if not keep:
                with console.status("cleaning up"):
                    daemon.down(state_dir, now=True)  # what would be saved goes too
    finally:
        if not keep:
            shutil.rmtree(state_dir, ignore_errors=True)
    title = f"still up at {found.address}" if keep else "cleaned up; try next"
    console.print(Panel(_NEXT, title=title, expand=False))


def _bring_up(state_dir: Path) -> daemon.Running:
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting a local mixed cluster", total=None)
        found = daemon.up(
            shipped("demo.yaml"),
            state_dir=state_dir,
            any_port=True,
            say=lambda doing: progress.update(task, description=doing),
        )
        up = f"up: {found.nodes} mixed nodes behind one gate at {found.address}"
        progress.update(task, description=up, total=1, completed=1)
    return found


if __name__ == "__main__":
    sys.exit(main())
