"""The command line: every command answers people with a table, and programs with `--json`.

Exit codes: 0 done · 1 our own mistake · 2 the request can't succeed as written · 3 no valid key, or not allowed ·
4 not enough tokens · 5 no such thing · 6 conflict · 7 the job failed, where it has no exit code of its own · 8 try again later · 130 interrupted. `fabric
doctor` ends with 1 where something it has looked at fails, `fabric audit verify` with 2 where an export proves nothing.

An expected error is one line on standard error, JSON with `--json`; `fabric --debug ...` shows where it came from.
In JSON an amount is a string of µHs (`..._uhs`) and the same in tokens (`..._ct`). It knows the wire alone; what starts
and stops a fabric is in `cluster`.
"""

from fabric.cli import quiet  # noqa: F401  # comes before whatever imports gRPC
from fabric.cli.app import app, main

__all__ = ["app", "main"]
