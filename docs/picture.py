"""Draws docs/demo.svg: what `make demo` shows, recorded from a run of it.

    make picture

Nothing is made up: the demo runs as it always does, on a console that records what it prints, and beside its results one look
at the jobs while they run. Of its sections those that fit a screen are kept. Rich draws them; its web fonts are taken out, so that
the picture asks nobody for anything.
"""

import io
import re
import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.segment import Segment, Segments

from fabric.demo import __main__, tables

PICTURE: Final = Path(__file__).parent / "demo.svg"
WIDTH: Final = 118
SECTIONS: Final = (3, 4, 5, 6, 8)
"""Which of the demo's sections, by their numbers."""
CUT: Final = {8: re.compile(r"^  (signed|found) |^   (\d+|entry) |^demo\+|^$")}
"""Lines of a section that are left out."""
ENDS_BEFORE: Final = "on Ray's dashboard"


class Look:
    """The jobs, shown once while all of them burn."""

    def __init__(self) -> None:
        self._live, self._shown = tables.live, False

    def __call__(self, fabric: Any, jobs: Any, **more: Any) -> Any:
        view = self._live(fabric, jobs, **more)
        burning = [job.cost().burn_uhs_per_s for job in jobs]
        if not self._shown and len(burning) > 1 and all(burning) and all(job.info().step > 10 for job in jobs):
            self._shown = True
            tables.console.print(view)
        return view


def sections(segments: list[Segment]) -> dict[int, list[list[Segment]]]:
    """The lines of each section, from its heading to the next one's."""
    found: dict[int, list[list[Segment]]] = {}
    at = 0
    for line in Segment.split_lines(segments):
        text = "".join(each.text for each in line)
        if ENDS_BEFORE in text:
            break
        if heading := re.match(r"(\d)  \S", text):
            at = int(heading[1])
        if not (at in CUT and CUT[at].search(text)):
            found.setdefault(at, []).append(line)
    return found


def drawn(lines: list[list[Segment]]) -> str:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Segments([each for line in lines for each in (*line, Segment.line())]), end="")
    drawing = console.export_svg(title="make demo", unique_id="demo")
    drawing = drawing.replace("<svg ", '<svg xml:space="preserve" ', 1)
    drawing = re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL)
    return re.sub(r"<!--.*?-->\s*", "", drawing).replace("Fira Code, monospace", "monospace")


def main() -> int:
    tables.console.record, tables.console.width = True, WIDTH
    tables.live = Look()
    code = __main__.main([])
    found = sections(list(tables.console._record_buffer))  # noqa: SLF001  # what `export_svg` draws from, before it is drawn
    kept = [line for number in SECTIONS for line in found[number]]
    PICTURE.write_text(drawn(kept) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
