"""The demo's story, told by a customer and, for what only an operator may do, by the operator."""

import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from rich.live import Live

from fabric import daemon
from fabric.audit.verify import verify_export
from fabric.client.client import Client, new_request_id
from fabric.client.limits import terms_of
from fabric.client.profile import Profile
from fabric.demo import tables
from fabric.demo.tables import console, heading
from fabric.demo.webhook import Listener
from fabric.errors import InsufficientTokens
from fabric.sdk import Fabric, Job, connect
from fabric.units import format_cny
from fabric.wire import fabric_pb2 as pb
from fabric.wire import format_key, hash_secret, make_secret

STARTER_CT: Final = "10"
LIMIT_CT: Final = "0.1"
TOO_MUCH_CT: Final = "25"
"""What the refused job asks for: more than the account has."""
DAY_CT: Final = "0.05"
"""What a key of the demo may use in a day: less than a job asks for."""
MODEL: Final = "byte-lm"
ASKED: Final = "import os\nimport sys\n\ndef main("
ANSWER_TOKENS: Final = 48
PACKAGE: Final = "llm-10m"
"""Of LLM tokens, as plans.yaml sells it."""
SETTLED_S: Final = 30.0
STRANGER: Final = "torch.utils.benchmark.examples.simple_timeit"
"""A program that comes with torch, and measures how long an addition takes."""
STRANGER_SAYS: Final = "Run: "
_LINES_SHOWN: Final = 8
_REFRESH_S: Final = 0.25


def tell(found: daemon.Running, *, steps: int) -> None:
    """All of it.

    Raises:
        AssertionError: a promise was not kept.
    """
    key_of_operator = daemon.operator_key(Path(found.state_dir))
    profile = Profile(address=found.address, api_key=key_of_operator, ca=found.ca, account="acme")
    with closing(Client(profile)) as operator:
        heading(1, "An account, its own API key, and a Starter pack")
        key = _open_account(operator)
        with connect(found.address, key, found.ca) as fabric, Listener() as listener:
            paid = fabric.pay(STARTER_CT).wait(SETTLED_S)
            balance = fabric.balance()
            console.print(
                f"   acme paid {format_cny(paid.price_microcny)} CNY for {paid.buys} at the {paid.document()['provider']}, the payment"
                f" stand-in of this machine: {balance.free_ct} free, plan {balance.plan}"
            )

            _have_told(fabric, listener)

            heading(2, "A quote before anything runs")
            console.print(tables.quoted(fabric, tokens=LIMIT_CT, accelerators="H100:1"))

            _train_and_serve(fabric, operator, found, key=key, steps=steps)

            heading(7, "A program that nobody here wrote, as it is")
            _run_stranger(fabric)

            heading(8, "The bill, and its proof")
            console.print(tables.statement(fabric))
            _verify(fabric, found)
            _show_told(listener)
            if found.dashboard:
                console.print(
                    f"   on Ray's dashboard ({found.dashboard} → Jobs, with the token in {found.ray_token}) each job shows its account and tokens"
                )


def _train_and_serve(fabric: Fabric, operator: Client, found: daemon.Running, *, key: str, steps: int) -> None:
    from training.demo import byte_lm  # noqa: PLC0415 - torch takes seconds to import: not before there is something to see

    heading(3, "Two real training jobs, metered while they run")

    def submit(name: str, accelerators: str | Sequence[str], **kwargs: Any) -> Job:
        # A rank for each device, forked from a process that has torch: any number of them reaches the same weights.
        return fabric.submit(
            byte_lm.train, kwargs=kwargs, tokens=LIMIT_CT, accelerators=accelerators, name=name, ranks="device"
        )

    train = submit("train", "H100:1", steps=steps)
    waits = submit("waits-on-data", ["H100:1-2", "A100:1-2"], steps=steps, wait_ratio=0.5)
    with _shown(fabric, [train, waits]) as refresh:
        while not train.done():
            refresh("")
    console.print(
        f"   train is done: {tables.learned(train)}; waits-on-data does the same work on a source that lets it wait half of"
        " the time, on an idle device that is reserved for inference"
    )

    # It takes the device that came free, so that who is evicted must go on elsewhere.
    jobs = [train, waits, submit("other-seed", "H100:1", steps=steps // 2, seed=1)]
    heading(4, "A job that the account can't cover")
    _refused(fabric, byte_lm.train)
    _limited(fabric, found, byte_lm.train)

    heading(5, "The trained model is offered, and the reserved device reclaimed for it")
    offer = pb.ModelSpec(
        name=MODEL, source=f"job:{train.id}", accelerators=["H100"], devices=1, replicas_min=1, replicas_max=1
    )
    operator.call(pb.OfferModelRequest(request_id=new_request_id(), spec=offer), pb.Accepted)
    with _shown(fabric, jobs) as refresh:
        while not _is_ready(refresh, fabric) or not all(job.done() and job.cost().settled for job in jobs):
            pass
    console.print(tables.results(fabric, jobs))
    _nothing_lost(train, waits)

    heading(6, "An OpenAI client, paid from the same balance")
    _ask(fabric, found, key=key)
    fabric.client.call(pb.BuyBundleRequest(request_id=new_request_id(), bundle=PACKAGE), pb.Accepted)
    _ask(fabric, found, key=key, package=True)


def _have_told(fabric: Fabric, listener: Listener) -> None:
    """Its own server is told what becomes of its jobs, and when its tokens run out."""
    request = pb.AddEndpointRequest(request_id=new_request_id(), url=listener.url)
    listener.secret = json.loads(fabric.client.call(request, pb.Document).json)["secret"]


def _show_told(listener: Listener) -> None:
    notices = listener.wait("job.ended", timeout_s=SETTLED_S)
    kinds = sorted({notice["type"] for notice in notices})
    (said, *_) = [notice["data"]["text"] for notice in notices if notice["type"] == "job.ended"]
    console.print(
        f"   meanwhile acme's own server heard by signed webhook of {', '.join(kinds)}: {len(notices)} notices, as of “{said}”"
    )


def _open_account(operator: Client) -> str:
    """A customer's account; the secret of its key, which nobody else ever sees."""
    operator.call(
        pb.OpenAccountRequest(request_id=new_request_id(), account_id="acme", name="Acme Labs", plan="starter"),
        pb.Accepted,
    )
    secret = make_secret()
    made = operator.call(
        pb.CreateKeyRequest(request_id=new_request_id(), secret_sha256=hash_secret(secret), name="demo"),
        pb.CreateKeyReply,
    )
    return format_key(made.key_id, secret)


@contextmanager
def _shown(fabric: Fabric, jobs: Sequence[Job]) -> Iterator[Callable[[str], None]]:
    """Jobs, live; what is yielded refreshes the picture, with a line about what else goes on."""
    with Live(console=console, refresh_per_second=4, transient=not console.is_terminal) as live:

        def refresh(also: str) -> None:
            live.update(tables.live(fabric, jobs, also=also))
            time.sleep(_REFRESH_S)

        yield refresh


def _is_ready(refresh: Callable[[str], None], fabric: Fabric) -> bool:
    (model,) = fabric.client.call(pb.ListModelsRequest(), pb.ListModelsReply).models
    refresh(f"{MODEL}: {model.state}")
    assert model.state != "failed", f"{MODEL} can't be served: {model.reason}"
    return bool(model.replicas_ready)


def _nothing_lost(train: Job, evicted: Job) -> None:
    """The evicted run against the one that was left alone."""
    info, ended, alone = evicted.info(), evicted.result(), train.result()
    console.print(f"   {info.name}: {info.timeline}")
    assert info.attempts > 1, "nobody was evicted"
    assert ended["weights_sha256"] == alone["weights_sha256"], "an eviction changed the weights"
    console.print(
        f"   its weights, on {ended['ranks']} ranks in the end: {ended['weights_sha256'][:16]}… – [green]the same bits[/] as"
        " those of the run that nobody interrupted"
    )


def _ask(fabric: Fabric, found: daemon.Running, *, key: str, package: bool = False) -> None:
    """A stream, as any OpenAI client asks for one; paid from a package of LLM tokens where there is one by now."""
    from openai import DefaultHttpxClient, OpenAI  # noqa: PLC0415 - comes with the engine

    http = DefaultHttpxClient(verify=found.ca or True)
    with OpenAI(base_url=found.endpoint, api_key=key, http_client=http) as client:
        stream = client.completions.create(
            model=MODEL,
            prompt=ASKED,
            max_tokens=ANSWER_TOKENS,
            temperature=0.0,
            stream=True,
            stream_options={"include_usage": True},
        )
        said, usage, paid = "", None, {}
        for chunk in stream:
            said += "".join(choice.text for choice in chunk.choices)
            if chunk.usage is not None:
                usage, paid = chunk.usage, (chunk.model_extra or {}).get("fabric", {})
    assert usage is not None, "a stream without its usage"
    console.print(f"   {ASKED!r} → {said!r}", markup=False)
    settled = _settled(fabric, calls=2 if package else 1)
    assert settled.charged_uhs == int(paid["charged_uhs"]), "the bill says something else than the answer did"
    assert bool(settled.packages) == package, f"paid for otherwise than was bought: {settled}"
    said_of = f"charged {paid['charged_ct']} CT of {fabric.balance().free_ct} free"
    if package:
        assert settled.charged_uhs == 0, "a package covers every token"
        said_of = f"from the package: {fabric.balance().packages[0]}"
    console.print(f"   {usage.prompt_tokens} + {usage.completion_tokens} LLM tokens, {said_of}", markup=False)


def _settled(fabric: Fabric, *, calls: int) -> pb.Cdr:
    """The newest call's charging record, once it is in the ledger: a replica settles its calls every few seconds."""
    until = time.monotonic() + SETTLED_S
    while time.monotonic() < until:
        records = [record for record in fabric.usage() if record.model == MODEL]
        if len(records) >= calls:
            return max(records, key=lambda record: record.ended_at_us)
        time.sleep(_REFRESH_S)
    raise AssertionError(f"the call is not settled after {SETTLED_S:g} s")


def stranger() -> Path:
    """The file of `STRANGER`, in the package that it comes with."""
    found = importlib.util.find_spec(STRANGER)
    assert found is not None, f"{STRANGER} is not installed"
    assert found.origin is not None, f"{STRANGER} is no file"
    return Path(found.origin)


def _run_stranger(fabric: Fabric) -> None:
    """What was written for no fabric, read from the package that it comes with."""
    script = stranger()
    job = fabric.submit(script, tokens=LIMIT_CT, accelerators="910B:1", name="torchs-benchmark")
    with _shown(fabric, [job]) as refresh:
        while not (job.done() and job.cost().settled):
            refresh("")
    said = "".join(job.logs())
    assert job.state == "succeeded", f"{script.name}: {job.info().error}"
    assert STRANGER_SAYS in said, f"{script.name} said {said!r}"
    console.print(f"   {STRANGER} said at its end:")
    for line in said.strip().split("\n\n")[-1].splitlines()[:_LINES_SHOWN]:
        console.print(f"      {line}", markup=False, highlight=False, style="dim")
    console.print(tables.paid(fabric, job))


def _refused(fabric: Fabric, work: Callable[..., Any]) -> None:
    try:
        fabric.submit(work, tokens=TOO_MUCH_CT, accelerators="A100:2", name="too-big")
    except InsufficientTokens as refusal:
        console.print(f"   [red]refused[/] ({refusal.code}): {refusal.message}")
    else:
        raise AssertionError("a job was accepted that nobody can pay for")


def _limited(fabric: Fabric, found: daemon.Running, work: Callable[..., Any]) -> None:
    """A key for a day's use, which is refused when that is used up, and told until when."""
    secret = make_secret()
    limit = terms_of(DAY_CT, per="day", zone="Asia/Shanghai")
    asked = pb.CreateKeyRequest(
        request_id=new_request_id(), secret_sha256=hash_secret(secret), name="intern", limits=[limit]
    )
    made = fabric.client.call(asked, pb.CreateKeyReply)
    with connect(found.address, format_key(made.key_id, secret), found.ca) as intern:
        try:
            intern.submit(work, tokens=LIMIT_CT, accelerators="A100:1", name="too-much-a-day")
        except InsufficientTokens as refusal:
            console.print(f"   [red]refused[/] ({refusal.code}): {refusal.message}")
        else:
            raise AssertionError("a key was let go beyond what it may use in a day")
        (shown,) = intern.limits()
        assert shown.left == shown.amount, "a refusal has used something up"


def _verify(fabric: Fabric, found: daemon.Running) -> None:
    export = Path(found.state_dir) / "acme-export.jsonl"
    export.write_bytes(fabric.client.fetch(pb.ExportRequest()))
    lines = export.read_text().splitlines()
    report = verify_export(lines, trusted_key=found.verifier_key)
    assert report.ok, f"the export does not verify: {report.problem}"
    console.print(f"   [green]verified offline[/]: {report}")
    entry = json.loads(lines[1])
    lines[1] = lines[1].replace("A", "B", 1) if "A" in lines[1] else json.dumps(entry | {"forged": True})
    forged = verify_export(lines, trusted_key=found.verifier_key)
    assert not forged.ok, "a forged export verifies"
    console.print(f"   with one byte changed: [red]{forged.problem}[/]")
