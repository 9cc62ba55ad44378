"""`fabric calibrate`: what a model does on the nodes that serve it, and the rates that follow from it."""

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer

from fabric.cli.output import console, print_facts, print_json, record, table
from fabric.cli.plain_logs import log_plainly
from fabric.cli.session import AsJson, client
from fabric.client.client import Client, new_request_id
from fabric.errors import FabricError, InvalidRequest, NotFound, Unavailable, error_of
from fabric.extras import needed
from fabric.units import PPM, format_ct
from fabric.wire import fabric_pb2 as pb
from fabric.wire.keys import format_key, hash_secret, make_secret

app = typer.Typer(help="Measure what is sold.", no_args_is_help=True)

OPERATOR: Final = "operator"
"""The operator's own account, as `fabric up` opens it."""
_CALL_TIMEOUT_S: Final = 600
_KEY_LIFE_US: Final = 3_600 * 1_000_000
_WORDS: Final = 200
"""Prompts are made of so many different LLM tokens: the first ones, which every tokeniser has."""
_SERVICE: Final = "inference"


@app.callback()
def start() -> None:
    """Measure what is sold."""


@app.command()
def serving(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="One that is ready, as `fabric models` shows it.")],
    *,
    streams: Annotated[int, typer.Option(min=1, help="Calls at once that load one replica fully.")] = 64,
    prompt: Annotated[int, typer.Option(min=1, help="LLM tokens of each prompt.")] = 256,
    answer: Annotated[int, typer.Option(min=1, help="LLM tokens of each answer.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.1, help="For prompts, and again for answers.")] = 20.0,
    accelerator: Annotated[str, typer.Option(help="On which type it runs, where it may run on several.")] = "",
    endpoint: Annotated[str, typer.Option(help="Base URL, where it isn't the fabric's own.")] = "",
    account: Annotated[str, typer.Option("--account", "-a", help="Operators: who pays for the calls.")] = OPERATOR,
    as_json: AsJson = False,
) -> None:
    """Load a model's one replica for a while, and derive the rates at which it charges just what its devices burn.

    The calls are paid like any: by a customer with the key at hand, for an operator by the fabric's own account. Offer the
    model with one replica first; nothing else should use it.

    For example: fabric calibrate serving qwen3-8b --streams 64 --json > rates.json
    then: fabric ops models offer qwen3-8b /models/qwen3-8b --rates rates.json
    """
    needed("aiohttp", by="fabric calibrate")
    log_plainly()
    import asyncio  # noqa: PLC0415

    from serving import calibrate  # noqa: PLC0415 - only needed here

    door = client()
    found = door.call(pb.ListModelsRequest(), pb.ListModelsReply)
    offered = next((each for each in found.models if each.name == model), None)
    if offered is None:
        raise NotFound(f"there is no model {model!r}: `fabric models` lists those that are offered", model=model)
    kind = accelerator or _only_type(offered)
    url = endpoint or next(iter(found.endpoints), "")
    if not url:
        raise Unavailable("no gateway is up: is the serving host running? Name one with --endpoint", code="no_endpoint")
    weight_ppm = _weight_ppm(door, kind)
    with _paying_key(door, account, is_operator=offered.HasField("spec")) as key:
        load = _measured(
            door, key, url.rstrip("/"), model, streams=streams, prompt=prompt, answer=answer, seconds=seconds
        )
        measured = asyncio.run(load)
    rate = calibrate.rate_of(measured, model=model, accelerator=kind, devices=offered.devices, weight_ppm=weight_ppm)
    made = pb.Rate(
        model=model,
        accelerator=kind,
        input_uhs_per_mtok=rate.input_uhs_per_mtok,
        cached_uhs_per_mtok=rate.cached_uhs_per_mtok,
        output_uhs_per_mtok=rate.output_uhs_per_mtok,
        reasoning_uhs_per_mtok=rate.reasoning_uhs_per_mtok,
    )
    seen = {"prompt": measured.prompts, "completion": measured.answers}
    if as_json:
        facts = {name: {"tokens": each.tokens, "elapsed_us": each.elapsed_us} for name, each in seen.items()}
        print_json({"model": model, "devices": offered.devices, "measured": facts, "rates": [record(made)]})
        return
    print_facts({f"{name} tokens": f"{each.tokens} in {each.elapsed_us / PPM:.1f} s" for name, each in seen.items()})
    kinds = ("input", "cached", "output", "reasoning")
    rows = [(each, *_both_units(getattr(made, f"{each}_uhs_per_mtok"))) for each in kinds]
    console().print(table(f"{model} on {kind}", ("rate", "H100-s/M", "CT/M"), rows))


@contextmanager
def _paying_key(door: Client, account: str, *, is_operator: bool) -> Iterator[str]:
    """A customer's own key; for an operator, whose key spends nothing, one of the account's that ends with this."""
    if not is_operator:
        yield door.profile.api_key
        return
    payer, secret = client(account), make_secret()
    request = pb.CreateKeyRequest(
        request_id=new_request_id(),
        secret_sha256=hash_secret(secret),
        name="calibrate",
        expires_at_us=int(time.time()) * PPM + _KEY_LIFE_US,
    )
    key_id = payer.call(request, pb.CreateKeyReply).key_id
    try:
        yield format_key(key_id, secret)
    finally:
        payer.call(pb.RevokeKeyRequest(request_id=new_request_id(), key_id=key_id), pb.Accepted)


def _only_type(model: pb.Model) -> str:
    if len(model.accelerators) == 1:
        return model.accelerators[0]
    types = ", ".join(model.accelerators) or "any"
    raise InvalidRequest(
        f"{model.name} may run on {types}: say on which it does, with --accelerator", code="which_type"
    )


def _weight_ppm(door: Client, accelerator: str) -> int:
    """Of a device in inference, for everybody and at any hour; what a lease of the operator's burns."""
    weights = json.loads(door.fetch(pb.PricesRequest()))["tariffs"]["weights"]
    plain = [each for each in weights if not any(each.get(name) for name in ("operator", "tier", "hours"))]
    mine = [each for each in plain if each["accelerator"] == accelerator and each.get("service") in (None, _SERVICE)]
    if not mine:
        raise InvalidRequest(f"the tariffs have no weight for {accelerator!r}: add it", code="unknown_accelerator")
    return int(max(mine, key=lambda each: each.get("service") is not None)["ppm"])


async def _measured(
    door: Client, key: str, url: str, model: str, *, streams: int, prompt: int, answer: int, seconds: float
) -> Any:
    import ssl  # noqa: PLC0415

    import aiohttp  # noqa: PLC0415  # a client alone has it not

    from serving import calibrate  # noqa: PLC0415

    trust = ssl.create_default_context(cafile=door.profile.ca or None) if url.startswith("https") else False
    timeout = aiohttp.ClientTimeout(total=_CALL_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {key}"}
    connector = aiohttp.TCPConnector(ssl=trust, limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:

        async def ask(prompt_tokens: int, answer_tokens: int) -> tuple[int, int, int]:
            return await _ask(session, url, model, prompt_tokens, answer_tokens)

        return await calibrate.measure(
            ask, streams=streams, prompt_tokens=prompt, answer_tokens=answer, seconds=seconds
        )


async def _ask(session: Any, url: str, model: str, prompt_tokens: int, answer_tokens: int) -> tuple[int, int, int]:
    """One completion of a prompt that nobody had before; what the engine counted.

    Raises:
        FabricError: the endpoint's own error, or `Unavailable`.
    """
    import aiohttp  # noqa: PLC0415

    words = [random.randrange(1, _WORDS) for _ in range(prompt_tokens)]  # noqa: S311 - to differ, not to be secret
    body = {"model": model, "prompt": words, "max_tokens": answer_tokens, "min_tokens": answer_tokens, "temperature": 0}
    try:
        async with session.post(f"{url}/completions", json=body) as answer:
            said = await answer.json(content_type=None)
            status = answer.status
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise Unavailable(f"{url} doesn't answer: {type(error).__name__}: {error}", code="no_endpoint") from None
    if status != 200:  # noqa: PLR2004
        raise _refused(status, said)
    usage = said["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return usage["prompt_tokens"], cached, usage["completion_tokens"]


def _refused(status: int, said: Any) -> FabricError:
    """An error in OpenAI's form as ours."""
    error = said.get("error") if isinstance(said, dict) else None
    message = error.get("message", "") if isinstance(error, dict) else str(said)[:200]
    return error_of("endpoint_refused", status, f"the endpoint refused: {message}", {})


def _both_units(uhs_per_mtok: int) -> tuple[str, str]:
    """µHs for a million LLM tokens in H100-seconds, as cluster files have them, and in compute tokens."""
    return f"{uhs_per_mtok // PPM}.{uhs_per_mtok % PPM:06d}".rstrip("0").rstrip("."), format_ct(
        uhs_per_mtok, decimals=6
    )
