"""The commands put together, and how errors end them."""

import importlib.metadata
import logging
import os
import sys
from typing import Annotated, Any, Final

import typer
import typer.core

from fabric import extras
from fabric.cli import audit, calibrate, checkpoints, cluster, jobs, keys, models, money, operator
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


class Commands(typer.core.TyperGroup):
    """A group in which an expected error is one line and an exit code."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        own_words = args[: args.index("--")] if "--" in args else args
        wants_json = "--json" in own_words
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[_WANTS_JSON] = wants_json
        return context

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FabricError as error:
            if ctx.params.get("debug"):
                raise
            raise _ended(ctx, error) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except ModuleNotFoundError as error:
            if extras.is_ours(error.name) or ctx.params.get("debug"):
                raise
            raise _ended(
                ctx, extras.missing(error.name or "", by=f"fabric {ctx.invoked_subcommand or ''}".strip())
            ) from None
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(0) from None
        except OSError as error:
            if error.filename is None or ctx.params.get("debug"):
                raise
            about = f"{error.filename}: {error.strerror}"
            raise _ended(ctx, InvalidRequest(about, code="file_unusable", path=str(error.filename))) from None
        except Exception as error:
            _point_at_dashes(error)
            raise


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
        say(f"token-fabric {importlib.metadata.version('token-fabric')}")
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


for module in (cluster, jobs, money, models):
    module.register(app)
app.add_typer(checkpoints.app, name="checkpoints", rich_help_panel="Jobs")
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(calibrate.app, name="calibrate")
app.add_typer(operator.app, name="ops")
operator.app.add_typer(models.ops, name="models")


def main() -> None:
    """Run the command line."""
    app()
