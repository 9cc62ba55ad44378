"""The verifier as one file: an implementation of its own, that whoever doubts a bill runs without the product."""

import ast
import subprocess
import sys
from pathlib import Path

import cryptography
import pytest
from typer.testing import CliRunner

from fabric.audit.one_file import PACKAGE, one_file
from fabric.audit.verify import Lines, verify_export
from fabric.cli.app import app


def imported(source):
    return {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def test_it_imports_the_standard_library_and_cryptography_alone():
    source = one_file()
    assert {name.partition(".")[0] for name in imported(source)} - set(sys.stdlib_module_names) == {"cryptography"}
    assert source == one_file()
    compile(source, "verify.py", "exec")


def test_every_module_stands_in_it_as_it_is():
    whole = one_file()
    for path in PACKAGE.glob("[!_]*.py"):
        module = ast.parse(path.read_text())
        for node in module.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert ast.get_source_segment(path.read_text(), node) in whole, (path, node.name)


async def test_it_verifies_a_real_export_in_an_empty_environment(log, tmp_path):
    """No site-packages but those of `cryptography`, no product, no environment variables, another directory."""
    await log.run_job("acme", job_id="job-1")
    key = log.auditor.verifier_key
    lines = await log.export("acme")
    found = Path(cryptography.__file__).parents[1]
    only = tmp_path / "site"
    only.mkdir()
    for name in ("cryptography", "cffi", "_cffi_backend"):
        for path in found.glob(f"{name}*"):
            (only / path.name).symlink_to(path)
    (tmp_path / "verify.py").write_text(one_file(), encoding="utf-8")

    def ended(export, *more):
        (tmp_path / "export.jsonl").write_text("".join(export), encoding="utf-8")
        run = f"import sys, runpy; sys.path.append({str(only)!r}); sys.argv[0] = 'verify.py'; runpy.run_path('verify.py', run_name='__main__')"
        ran = subprocess.run(
            [sys.executable, "-I", "-S", "-c", run, "export.jsonl", *more],
            capture_output=True, text=True, cwd=tmp_path, check=False, env={},
        )  # fmt: skip
        return ran.returncode, ran.stdout, ran.stderr

    assert (tmp_path / "verify.py").read_text() == one_file()
    code, said, problem = ended(lines, "--key", key)
    assert (code, "VERIFIED fabric.example/test acme" in said) == (0, True), problem
    assert ended(lines)[0] == 3
    code, said, _ = ended([*lines[:-2], lines[-1]], "--key", key)
    assert (code, "NOT VERIFIED" in said) == (1, True)


@pytest.mark.parametrize(
    ("second", "why"),
    [
        ("def f(): ...\n", "defined in a and in b"),
        ("from .a import f as g\n", "renames"),
        ("from ..c import g\n", "renames"),
    ],
)
def test_what_one_file_can_not_say_is_refused_when_it_is_made(tmp_path, second, why):
    (tmp_path / "__init__.py").write_text('"""x"""\n')
    (tmp_path / "a.py").write_text("def f(): ...\n")
    (tmp_path / "b.py").write_text(second)
    with pytest.raises(ValueError, match=why):
        one_file(tmp_path)


async def test_an_export_is_read_line_by_line_and_not_kept(log, tmp_path):
    """Each reading holds one line at a time: whoever made it a list would keep all of a file larger than the memory."""
    lines, alive, most = await log.export(), 0, 0

    class Line(str):
        __slots__ = ("counted",)

        def __del__(self):
            nonlocal alive
            alive -= 1

    class Counted:
        def __iter__(self):
            nonlocal alive, most
            for line in lines:
                alive += 1
                most = max(most, alive)
                yield Line(line)

    assert verify_export(Counted(), trusted_key=log.auditor.verifier_key).ok
    assert len(lines) > 20 > most
    (tmp_path / "bill.jsonl").write_text("".join(lines), encoding="utf-8")
    assert verify_export(Lines(tmp_path / "bill.jsonl"), trusted_key=log.auditor.verifier_key).ok
    assert verify_export(iter(lines), trusted_key=log.auditor.verifier_key).ok, "and what can be read only once is"
    (tmp_path / "bill.jsonl").write_bytes(b"\xff\xfe")
    assert verify_export(Lines(tmp_path / "bill.jsonl")).code == "no_export"


def test_the_command_writes_it():
    assert CliRunner().invoke(app, ["audit", "verifier"]).stdout == one_file()
