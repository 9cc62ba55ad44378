"""Commands that bring jobs: what one would cost, submitting it, and running a command through every eviction."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fabric.cli import model_prices
from fabric.cli.job_columns import before, per_hour, starts, where
from fabric.cli.output import duration, print_facts, print_json, record
from fabric.cli.packages import runtime_env_of
from fabric.cli.session import AsJson, ForAccount, client
from fabric.errors import InvalidRequest
from fabric.units import format_cny, format_ct
from fabric.wire import fabric_pb2 as pb

Tokens = Annotated[str, typer.Option("--tokens", "-t", help="The most the job may burn, e.g. 2 or 0.5.")]
Accelerators = Annotated[
    str,
    typer.Option(
        "--accelerators",
        "-x",
        help="H100:2, any, types to choose from (H100:2,A100:2), a range: any:1-8, or a part of one: H100:1/4.",
    ),
]
Hold = Annotated[
    Literal["full", "rolling"], typer.Option(help="Hold the whole limit at the start, or a part at a time.")
]
Name = Annotated[str, typer.Option(help="What people see.")]
Tag = Annotated[list[str] | None, typer.Option(help="A word to find it by, such as exp7; repeat for more.")]
RequestId = Annotated[
    str,
    typer.Option(
        help="Names the intention: said again, with the same content, it finds the job that it has submitted."
    ),
]
Env = Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeat for more.")]
Pip = Annotated[
    list[str] | None, typer.Option("--pip", help="A package that it needs, e.g. numpy==2.1; repeat for more.")
]
Requirements = Annotated[Path | None, typer.Option("--requirements", "-r", help="A file of packages, as pip has it.")]
RuntimeEnv = Annotated[
    str, typer.Option(help='In Ray\'s words, JSON or a file of it: {"pip": [...], "env_vars": {...}}.')
]
TimeLimit = Annotated[float | None, typer.Option(help="Seconds on devices, then it is parked.")]
Grace = Annotated[float | None, typer.Option(help="Seconds it is given to checkpoint.")]
StopSignal = Annotated[
    Literal["TERM", "INT", "HUP", "USR1", "USR2"],
    typer.Option(help="Which signal its program gets as the notice to save."),
]
AutoPark = Annotated[float | None, typer.Option(help="Seconds of idle devices, then it is parked.")]


def quote(
    *,
    tokens: Annotated[str, typer.Option("--tokens", "-t", help="The most the job may burn, e.g. 2 or 0.5.")] = "",
    model: Annotated[str, typer.Option(help="The price list of a language model instead, both ways.")] = "",
    accelerators: Accelerators = "any",
    hold: Hold = "full",
    name: Annotated[str, typer.Option(help="Of jobs like it that have run: what they took is told.")] = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """What a job would hold and burn, and what jobs of that name have burned before. Changes nothing.

    For example: fabric quote --tokens 2 --accelerators H100:2,A100:2 --name train.py
    or: fabric quote --model qwen3-8b
    """
    if model:
        model_prices.show(client(account), model, as_json=as_json)
        return
    if not tokens:
        raise typer.BadParameter("say --tokens of a job, or --model")
    from fabric.sdk.request import build_spec  # noqa: PLC0415

    spec = build_spec(name=name or "quote", kind="script", tokens=tokens, accelerators=_types(accelerators), hold=hold)
    answer = client(account).call(pb.QuoteRequest(spec=spec), pb.QuoteReply)
    if as_json:
        print_json(record(answer))
        return
    print_facts(
        {
            "reckoned with": where(answer),
            "held to start": f"{format_ct(answer.hold_uhs, round_up=True)} CT of {format_ct(answer.free_uhs)} CT free",
            "burns": f"{per_hour(answer.burn_uhs_per_s)} CT/h busy, {per_hour(answer.burn_idle_uhs_per_s)} CT/h idle",
            "lasts": f"{duration(answer.runtime_us)} at 80 % utilisation",
            "costs": f"{format_cny(answer.cost_microcny)} CNY at most",
            "before": before(answer),
            "starts": starts(answer),
            "accepted": answer.refusal or ("yes" if answer.affordable else "no: top up, or lower --tokens"),
        }
    )


def submit(
    words: Annotated[
        list[str], typer.Argument(metavar="SCRIPT | -- COMMAND...", help="A Python script, or a command after --.")
    ],
    *,
    tokens: Tokens,
    accelerators: Accelerators = "any",
    name: Name = "",
    tag: Tag = None,
    service: Annotated[
        str, typer.Option(help="training or batch; inference is for the models that the operator serves.")
    ] = "training",
    hold: Hold = "full",
    working_dir: Annotated[
        Path | None,
        typer.Option(
            help="Sent along, without what .gitignore and .fabricignore name, and without .env files; else the files that"
            " the command names, and the modules beside them that they import."
        ),
    ] = None,
    env: Env = None,
    pip: Pip = None,
    requirements: Requirements = None,
    runtime_env: RuntimeEnv = "",
    ray_program: Annotated[
        bool, typer.Option(help="On several nodes it runs once, and its Ray has all of them.")
    ] = False,
    preemptible: Annotated[bool, typer.Option(help="Whether it may be parked for others.")] = True,
    max_retries: Annotated[int, typer.Option(help="How often its own failure is tried again.")] = 0,
    time_limit: TimeLimit = None,
    grace: Grace = None,
    stop_signal: StopSignal = "TERM",
    auto_park: AutoPark = None,
    devices_per_node: Annotated[int | None, typer.Option(help="For gangs over several nodes.")] = None,
    mix: Annotated[
        Literal["never", "same-vendor", "islands"],
        typer.Option(help="What its gang may be where no type alone has room."),
    ] = "never",
    prefer: Annotated[
        Literal["tokens", "soonest"] | None,
        typer.Option(help="Of the types with room, that on which it burns fewest tokens, or is done soonest."),
    ] = None,
    ranks: Annotated[
        Literal["node", "device"], typer.Option(help="Run once for each node's share, or each device.")
    ] = "node",
    request_id: RequestId = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its logs until it ends.")] = False,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Hold tokens for a job and queue it.

    For example: fabric submit train.py --tokens 2 --accelerators H100:1 --follow
    """
    from fabric.cli import sdk_jobs  # noqa: PLC0415  # it takes a while to import

    with sdk_jobs.connected(account) as fabric:
        made = sdk_jobs.submitted(
            fabric,
            words,
            tokens=tokens,
            accelerators=_types(accelerators),
            name=name,
            tags=tag or [],
            request_id=request_id,
            service=service,
            hold=hold,
            working_dir=working_dir,
            env=_environment(env or []),
            runtime_env=runtime_env_of(runtime_env, requirements=requirements, pip=pip or []),
            ray_program=ray_program,
            preemptible=preemptible,
            max_retries=max_retries,
            time_limit=time_limit,
            grace=grace,
            stop_signal=stop_signal,
            auto_park=auto_park,
            devices_per_node=devices_per_node,
            mix=mix,
            prefer=prefer or "",
            ranks=ranks,
        )
        if follow:
            sdk_jobs.follow(made, as_json=as_json)
        else:
            sdk_jobs.print_submitted(made, as_json=as_json)


def run(
    words: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="Any command, or a Python script.")],
    *,
    tokens: Tokens,
    accelerators: Accelerators = "any",
    name: Name = "",
    tag: Tag = None,
    hold: Hold = "full",
    working_dir: Annotated[
        Path | None,
        typer.Option(
            help="Sent along, without what .gitignore and .fabricignore name, and without .env files; else the files that"
            " the command names, and the modules beside them that they import."
        ),
    ] = None,
    env: Env = None,
    pip: Pip = None,
    requirements: Requirements = None,
    runtime_env: RuntimeEnv = "",
    time_limit: TimeLimit = None,
    grace: Grace = None,
    stop_signal: StopSignal = "TERM",
    auto_park: AutoPark = None,
    request_id: RequestId = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Run any command preemptibly, and show what it prints until it ends, through every eviction.

    What it writes to the folder $FABRIC_CHECKPOINT_DIR is kept, and there again when it resumes. SIGTERM asks it to save
    and to exit with 75; one that doesn't catch it is ended when no file there is half written: of a tree such as `bash train.sh` or torchrun, whoever catches it gets it. For example: fabric run --tokens 2 -x any:1-4 -- python train.py
    """
    from fabric.cli import sdk_jobs  # noqa: PLC0415  # it takes a while to import

    with sdk_jobs.connected(account) as fabric:
        made = sdk_jobs.submitted(
            fabric,
            words,
            tokens=tokens,
            accelerators=_types(accelerators),
            name=name,
            tags=tag or [],
            request_id=request_id,
            hold=hold,
            working_dir=working_dir,
            env=_environment(env or []),
            runtime_env=runtime_env_of(runtime_env, requirements=requirements, pip=pip or []),
            time_limit=time_limit,
            grace=grace,
            stop_signal=stop_signal,
            auto_park=auto_park,
        )
        sdk_jobs.follow(made, as_json=as_json, timeline=True)


def _types(given: str) -> str | list[str]:
    types = [each.strip() for each in given.split(",")]
    return types[0] if len(types) == 1 else types


def _environment(given: list[str]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise InvalidRequest(f"--env {name!r}: write NAME=VALUE", code="invalid_env")
    return {name: value for name, _, value in pairs}
