"""The commands put together, and how errors end them."""

import logging
import os
import sys
from typing import Annotated, Any, Final

import typer
import typer.core

from fabric import extras, versions
from fabric.cli import (
    audit,
    calibrate,
    checkpoints,
    cluster,
    focus,
    jobs,
    keys,
    models,
    money,
    notices,
    operator,
    organisations,
    payments,
    quotas,
    simulate,
)
from fabric.cli.outlets import OUTPUT_FAILED, leave_output, prepare_output, unwritten
from fabric.cli.output import print_error, say
from fabric.cli.plain_logs import log_plainly
from fabric.errors import FabricError, InvalidRequest, JobFailed

INTERRUPTED: Final = 130
_WITH_WORDS: Final = ("submit", "run")
"""Commands that are given the words of others."""
_WANTS_JSON: Final = "fabric.wants_json"
EPILOG: Final = (
    "Exit codes: 0 done · 1 our own mistake, and of doctor that something fails · 2 the request can't succeed as written, or an export proves nothing · 3 no valid key, or not allowed, and of audit verify that no --key was given ·"
    " 4 not enough tokens · 5 no such thing · 6 conflict · 7 the job failed, where it has no exit code of its own (a script or command that is followed, or whose result is asked for, gives its own: 128 and the number of a signal) · 8 try again later · 9 the job that was followed is parked · 130 interrupted"
)


_UsageError: Final[Any] = typer.BadParameter.__mro__[1]
"""What typer raises for words that it can't read; it has no public name there."""


class Commands(typer.core.TyperGroup):
    """A group in which an expected error is one line and an exit code."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        own_words = args[: args.index("--")] if "--" in args else args
        wants_json = "--json" in own_words
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except _UsageError as error:
            if _shows_help(error):
                raise
            print_error(_usage(error), as_json=wants_json)
            raise typer.Exit(InvalidRequest.exit_code) from None
        context.meta[_WANTS_JSON] = wants_json
        return context

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            leave_output()
            raise typer.Exit(0) from None
        except _UsageError as error:
            if _shows_help(error):
                raise
            _point_at_dashes(error)
            raise _ended(ctx, _usage(error)) from None
        except Exception as error:
            told = None if ctx.params.get("debug") else _told(error, command=ctx.invoked_subcommand or "")
            if told is None:
                raise
            raise _ended(ctx, told) from None


def _told(error: Exception, *, command: str) -> FabricError | None:
    """What is said of it in a line; None = it is a mistake of ours, and is shown whole."""
    match error:
        case FabricError():
            return error
        case ModuleNotFoundError() if not extras.is_ours(error.name):
            return extras.missing(error.name or "", by=f"fabric {command}".strip())
        case OSError() if error.errno in OUTPUT_FAILED:
            leave_output()
            return unwritten(error)
        case OSError() if error.filename is not None:
            about = f"{error.filename}: {error.strerror}"
            return InvalidRequest(about, code="file_unusable", path=str(error.filename))
        case UnicodeEncodeError():
            return InvalidRequest(
                "a word, or a file's name, has bytes that are no text here: use a locale of UTF-8, such as LC_ALL=C.UTF-8",
                code="no_text",
            )
        case _:
            return None


def _shows_help(error: Any) -> bool:
    """Whether it is no mistake: a group alone says what it has."""
    return type(error).__name__ == "NoArgsIsHelpError"


def _usage(error: Any) -> InvalidRequest:
    """Words that can't be read as a command, in one line."""
    said, where = error.format_message().strip(), error.ctx.command_path if error.ctx is not None else "fabric"
    stop = " " if said.endswith((".", "?")) else ". "
    return InvalidRequest(f"{said}{stop}`{where} --help` says what there is", code="usage")


def _point_at_dashes(error: Exception) -> None:
    """An option that isn't ours may be meant for the job. (Typer has no public name for the error.)"""
    command, option = getattr(getattr(error, "ctx", None), "info_name", ""), getattr(error, "option_name", "")
    if command in _WITH_WORDS and option and type(error).__name__ == "NoSuchOption":
        said = (
            f"{getattr(error, 'message', '')}. What is the job's own comes after --, and its options are not read here"
        )
        error.message = f"{said}: `fabric {command} --tokens 1 -- train.py {option} ...`"  # type: ignore[attr-defined]


def _ended(ctx: Any, error: FabricError) -> typer.Exit:
    if error.code == "operator_only" and os.environ.get("FABRIC_API_KEY"):
        error.message += (
            ". Your key is the environment's: FABRIC_API_KEY comes before the profile, unset it to use that one's"
        )
    print_error(error, as_json=ctx.meta[_WANTS_JSON])
    own = error.facts.get("exit_code") if isinstance(error, JobFailed) else None
    return typer.Exit(own if isinstance(own, int) and own else error.exit_code)


app = typer.Typer(
    cls=Commands,
    name="fabric",
    help="Compute sold as tokens: submit jobs, watch them burn, prove every charge.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _say_version(asked: bool) -> None:
    if asked:
        import importlib.metadata  # noqa: PLC0415  # it brings the modules for mail along

        release = importlib.metadata.version("token-fabric")
        say(f"token-fabric {release} (rules {versions.RULES}, snapshots of format {versions.FORMAT})")
        raise typer.Exit


@app.callback()
def start(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[  # noqa: ARG001  # it has been answered when this is called
        bool, typer.Option("--version", "-V", help="Say which version this is.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, stream=sys.stderr)
    if debug:
        log_plainly()


for module in (cluster, jobs, money, payments, models, simulate):
    module.register(app)
app.add_typer(checkpoints.app, name="checkpoints", rich_help_panel="Jobs")
app.add_typer(keys.app, name="keys")
app.add_typer(organisations.org, name="org")
app.add_typer(organisations.projects, name="projects")
app.add_typer(organisations.members, name="members")
app.add_typer(notices.app, name="notices")
app.add_typer(audit.app, name="audit")
app.add_typer(focus.app, name="focus")
app.add_typer(calibrate.app, name="calibrate")
app.add_typer(operator.app, name="ops")
operator.app.add_typer(models.ops, name="models")
operator.app.add_typer(quotas.app, name="quota")


def main() -> None:
    """Run the command line."""
    prepare_output()
    try:
        app()
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            leave_output()
            raise SystemExit(0) from None
        if isinstance(ended.__context__, OSError) and ended.__context__.errno in OUTPUT_FAILED:
            leave_output()
        raise
    except OSError as error:  # of a page of help, which is written before there is a command
        if error.errno not in OUTPUT_FAILED:
            raise
        leave_output()
        print_error(unwritten(error), as_json=False)
        raise SystemExit(InvalidRequest.exit_code) from None
