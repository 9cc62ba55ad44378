"""Commands about language models: what is offered, how it gets on and what it costs; and for operators, offering it."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fabric.cli.cluster import is_all_here
from fabric.cli.output import console, print_json, record, say, table
from fabric.cli.session import AsJson, ForAccount, client, job_named
from fabric.client.client import Client, new_request_id
from fabric.errors import InvalidRequest, NotFound
from fabric.units import UHS_PER_CT, format_cny, format_ct
from fabric.wire import fabric_pb2 as pb

ops = typer.Typer(help="Language models: offer, scale and withdraw them.", no_args_is_help=True)

_US_PER_MS: Final = 1_000
_RATE_FIELDS: Final = ("input", "cached", "output", "reasoning")
_COLUMNS: Final = (
    "model", "on", "state", "replicas", "busy", "queue", "first token", "CT/M in", "CT/M cached", "CT/M out", "CNY/M in",
    "CNY/M out", "why",
)  # fmt: skip
_SPARE: Final = ("CT/M cached", "first token", "busy", "CNY/M in", "CNY/M out")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Its name, as `fabric models` shows it.")]


def register(app: typer.Typer) -> None:
    app.command("models", rich_help_panel="Models")(models)


def models(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Language models that you may call: their state, their queue, and what a million of their tokens costs.

    Call them with any OpenAI client: its base URL is the endpoint of the fabric, its API key your FABRIC_API_KEY.
    """
    found = client(account).call(pb.ListModelsRequest(), pb.ListModelsReply)
    where = f" at {', '.join(found.endpoints)}" if found.endpoints else ""
    if as_json:
        print_json([record(model) for model in found.models])
    elif not found.models:
        console().print(f"no models are offered{where}")
    else:
        rows = [row for model in found.models for row in _rows(model)]
        console().print(table(f"models{where}", _COLUMNS, rows, spare=_SPARE))


@ops.command()
def offer(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What clients ask for.")],
    source: Annotated[
        str, typer.Argument(help="A directory on the nodes, archive:KEY, job:ID of what made it, or a server's URL.")
    ],
    *,
    adapter_of: Annotated[str, typer.Option(help="It is a LoRA adapter of this model, and runs in its replicas.")] = "",
    accelerator: Annotated[list[str] | None, typer.Option(help="Where it may run, best first; repeat.")] = None,
    devices: Annotated[int, typer.Option(min=1, help="Of one replica.")] = 1,
    replicas: Annotated[str, typer.Option(help="How many, or from..to; from 0: none while nobody asks.")] = "1",
    ttft_ms: Annotated[int | None, typer.Option(min=1, help="Milliseconds to the first token to keep to.")] = None,
    dedicated_to: Annotated[
        str, typer.Option(help="Only for this account, on its own cell; an adapter's parent stays where it is.")
    ] = "",
    max_context: Annotated[int | None, typer.Option(min=1, help="LLM tokens; by default the model's own.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="An engine option as name=value; repeat.")] = None,
    engine_name: Annotated[
        str, typer.Option(help="What runs it: vllm, http (a server, by its URL) or sglang.", show_default="vllm")
    ] = "",
    rates: Annotated[Path | None, typer.Option(help="Rates, as `fabric calibrate serving --json` writes them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Offer a model, or replace one that is offered. Without --rates the tariffs' rates hold; for an adapter its parent's,
    also when these change.

    For example: fabric ops models offer qwen3-8b /models/qwen3-8b --accelerator H100 --replicas 1..4

    An adapter is a folder with adapter_config.json and adapter_model.safetensors, as peft saves it. Its parent must have
    been offered with --engine enable-lora, and --engine max-lora-rank=N for a rank above 16:
    fabric ops models offer qwen3-8b-law /models/law --adapter-of qwen3-8b
    """
    door = client()
    least, most = _bounds(replicas)
    spec = pb.ModelSpec(
        name=name,
        source=_source(door, source),
        parent=adapter_of,
        accelerators=accelerator or [],
        devices=devices,
        replicas_min=least,
        replicas_max=most,
        ttft_objective_us=None if ttft_ms is None else ttft_ms * _US_PER_MS,
        dedicated_to=dedicated_to or None,
        max_context=max_context,
        engine=engine_name,
        engine_args=[_engine_arg(given) for given in engine or ()],
    )
    where = _must_be_at(door, spec.source)
    request = pb.OfferModelRequest(request_id=new_request_id(), spec=spec, rates=_rates_in(rates) if rates else [])
    _done(door.call(request, pb.Accepted), f"{name} is offered: `fabric models` shows how it gets on{where}", as_json)


@ops.command()
def scale(
    name: Model,
    replicas: Annotated[str, typer.Argument(help="How many, or from..to.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Other bounds on a model's replicas.

    For example: fabric ops models scale qwen3-8b 0..8
    """
    least, most = _bounds(replicas)
    request = pb.ScaleModelRequest(request_id=new_request_id(), model=name, replicas_min=least, replicas_max=most)
    _done(client().call(request, pb.Accepted), f"{name} has {least} to {most} replicas from now on", as_json)


@ops.command()
def withdraw(name: Model, *, as_json: AsJson = False) -> None:
    """Offer a model no longer. Calls that are under way end and are settled.

    For example: fabric ops models withdraw qwen3-8b
    """
    request = pb.WithdrawModelRequest(request_id=new_request_id(), model=name)
    _done(client().call(request, pb.Accepted), f"{name} is withdrawn", as_json)


def _done(accepted: pb.Accepted, what: str, as_json: bool) -> None:
    if as_json:
        print_json({**record(accepted), "facts": json.loads(accepted.facts_json or "{}")})
    else:
        say(what)


# -- what is given -----------------------------------------------------------------------------------------------------


def _source(door: Client, given: str) -> str:
    """A folder here by its whole path, a job by its whole id; whatever else is meant for the nodes, as it is."""
    kind, _, name = given.partition(":")
    if kind == "job":
        return f"job:{job_named(door, name)}"
    return str(Path(given).absolute()) if Path(given).is_dir() else given


def _must_be_at(door: Client, source: str) -> str:
    """What to say of a folder that isn't here: nodes may be other machines.

    Raises:
        NotFound: they are not (code `no_folder`).
    """
    if source.startswith(("job:", "archive:", "http://", "https://")) or Path(source).is_dir():
        return ""
    if is_all_here(door.profile.address):
        raise NotFound(
            f"there is no folder {source} on this machine, where all nodes of this local fabric are: name the folder that"
            " has the model's config.json in it, or job:ID",
            code="no_folder",
        )
    return f". {source} is no folder here: it must be one on every node that is to load it"


def _bounds(given: str) -> tuple[int, int]:
    least, dots, most = given.partition("..")
    if not (least.isdecimal() and (most.isdecimal() if dots else True)):
        raise InvalidRequest(
            f"{given!r}: write replicas as a number, or as from..to such as 0..4", code="invalid_count", given=given
        )
    return int(least), int(most) if dots else max(int(least), 1)


def _engine_arg(given: str) -> pb.EngineArg:
    name, _, value = given.removeprefix("--").partition("=")
    return pb.EngineArg(name=name, value=value or "true")


def _rates_in(file: Path) -> list[pb.Rate]:
    """The rates in a JSON file: a list, or an object with `rates`; amounts as integers or strings of them.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: it doesn't say what a rate must.
    """
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}", file=str(file)) from None
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{file} is not JSON: {error}", code="invalid_rate", file=str(file)) from None
    try:
        return [_rate(line) for line in (said["rates"] if isinstance(said, dict) else said)]
    except (KeyError, TypeError, ValueError) as error:
        fields = ", ".join(f"{field}_uhs_per_mtok" for field in _RATE_FIELDS)
        raise InvalidRequest(
            f"{file}: a rate says accelerator (or leaves it out for any), {fields}, as integers; found {error!r}",
            code="invalid_rate",
            file=str(file),
        ) from None


def _rate(line: dict[str, Any]) -> pb.Rate:
    prompt, cached, output, reasoning = (int(line[f"{field}_uhs_per_mtok"]) for field in _RATE_FIELDS)
    return pb.Rate(
        accelerator=line.get("accelerator", ""),
        input_uhs_per_mtok=prompt,
        cached_uhs_per_mtok=cached,
        output_uhs_per_mtok=output,
        reasoning_uhs_per_mtok=reasoning,
    )


# -- what is shown -----------------------------------------------------------------------------------------------------


def _rows(model: pb.Model) -> Iterator[tuple[str, ...]]:
    """One for each type of accelerator that has a rate of its own; how the model gets on stands in the first."""
    told = [f"adapter of {model.parent}"] if model.parent else []
    told += [f"of {model.dedicated_to}"] if model.dedicated_to else []
    own = f" ({', '.join(told)})" if told else ""
    for at, rate in enumerate(_in_order(model)):
        shown = (
            f"{model.name}{own}",
            rate.accelerator or "|".join(model.accelerators) or "any",
            model.state,
            f"{model.replicas_ready} of {model.replicas_min}..{model.replicas_max}",
            str(model.running),
            str(model.waiting),
            f"{model.ttft_p50_us // _US_PER_MS} ms" if model.HasField("ttft_p50_us") else "–",
        )
        yield (
            *(shown if at == 0 else (shown[0], shown[1], "", "", "", "", "")),
            *(
                format_ct(uhs, decimals=6)
                for uhs in (rate.input_uhs_per_mtok, rate.cached_uhs_per_mtok, rate.output_uhs_per_mtok)
            ),
            *(_cny(uhs, model) for uhs in (rate.input_uhs_per_mtok, rate.output_uhs_per_mtok)),
            model.reason if at == 0 else "",
        )


def _in_order(model: pb.Model) -> Iterable[pb.Rate]:
    """As the model prefers its accelerators; what it can't run on is left out."""
    order = list(model.accelerators)
    rates = [rate for rate in model.rates if not order or not rate.accelerator or rate.accelerator in order]
    return sorted(rates, key=lambda rate: order.index(rate.accelerator) if rate.accelerator in order else len(order))


def _cny(uhs: int, model: pb.Model) -> str:
    """At the price of the caller's plan; an operator who acts for nobody has none."""
    if not model.price_microcny_per_ct:
        return "–"
    return format_cny(uhs * model.price_microcny_per_ct // UHS_PER_CT)
