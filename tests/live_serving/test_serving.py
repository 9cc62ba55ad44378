"""Train, serve, bill: the official client against a model in a lease, on a real fabric."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import httpx
import openai
import psutil
import pytest

from fabric import daemon
from fabric.sdk import Fabric
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from fabric.worker.lease_ray_settings import LOOPBACK
from tests.live_serving.conftest import OWNER

TEXT = "import os"
PROMPT = len(TEXT) + 1
IN, OUT = 40, 400
SECOND = "lab/byte-lm"


def client_of(service, key):
    return openai.OpenAI(base_url=service.found.endpoint, api_key=key, max_retries=0, timeout=60)


def records(client, *, at_least=1, of=None):
    """The account's calls as the statement has them, once they are there."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        calls = [cdr for cdr in client.stream(pb.UsageRequest(), pb.Cdr) if cdr.model and of in {None, cdr.model}]
        if len(calls) >= at_least:
            return calls
        time.sleep(0.2)
    raise AssertionError(f"{len(calls)} calls in the statement")


def leases(service, account="operator"):
    jobs = service.client(account).call(pb.ListJobsRequest(states=["running"], limit=100), pb.ListJobsReply).jobs
    return [job for job in jobs if job.name.startswith("serve ")]


def test_a_model_that_the_project_trained_answers_and_is_billed_to_the_token(service):
    service.until({"ready"})
    account, key = service.customer("1")
    with client_of(service, key) as client:
        answer = client.completions.create(model="byte-lm", prompt=TEXT, max_tokens=12, temperature=0)
    (cdr,) = records(account)
    assert (cdr.prompt_tokens, cdr.completion_tokens) == (PROMPT, answer.usage.completion_tokens)
    assert cdr.charged_uhs == PROMPT * IN + answer.usage.completion_tokens * OUT
    assert (cdr.model, cdr.accelerator, cdr.rate_version) == ("byte-lm", "H100", 1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        balance = account.call(pb.BalanceRequest(), pb.BalanceReply)
        if balance.held_uhs == 0:
            break
        time.sleep(0.2)
    assert (balance.free_uhs, balance.held_uhs) == (UHS_PER_CT - cdr.charged_uhs, 0)
    (lease,) = leases(service)
    assert lease.accelerator == "H100"


def test_a_stream_ends_at_the_last_token_that_is_paid(service):
    service.until({"ready"})
    account, key = service.customer("0.00001")  # 36,000 µHs: the prompt, and 89 answer tokens
    with client_of(service, key) as client:
        chunks = list(
            client.completions.create(
                model="byte-lm", prompt=TEXT, max_tokens=300, stream=True, extra_body={"ignore_eos": True},
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
        *_, end, usage = chunks
        assert end.choices[0].finish_reason == "length"
        assert end.choices[0].model_extra["stop_reason"] == "balance_exhausted"
        paid = (36_000 - PROMPT * IN) // OUT
        assert usage.usage.completion_tokens == paid
        (cdr,) = records(account)
        assert (cdr.completion_tokens, cdr.ended) == (paid, "balance_exhausted")
        with pytest.raises(openai.APIStatusError) as refused:
            client.completions.create(model="byte-lm", prompt=TEXT, max_tokens=3)
    assert (refused.value.status_code, refused.value.code) == (402, "insufficient_quota")


def test_a_replica_that_is_killed_settles_what_it_produced_and_comes_back_in_its_lease(service):
    service.until({"ready"})
    (lease,) = leases(service)
    account, key = service.customer("1")
    (victim,) = [each for each in psutil.process_iter() if _runs_replica(each, lease)]
    with client_of(service, key) as client:
        stream = client.completions.create(
            model="byte-lm", prompt=TEXT, max_tokens=450, stream=True, extra_body={"ignore_eos": True}
        )
        assert len(list(itertools.islice(stream, 10))) == 10
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(openai.APIError):
            list(stream)
        service.until({"starting", "waiting", "idle"}, within_s=30)
        service.until({"ready"})
        (cdr,) = records(account)
        assert cdr.ended == "error"
        assert 10 <= cdr.completion_tokens < 450
        assert [each.job_id for each in leases(service)] == [lease.job_id]
        assert client.completions.create(model="byte-lm", prompt=TEXT, max_tokens=3).usage.prompt_tokens == PROMPT


def _runs_replica(process, lease):
    try:
        return "ServeReplica" in " ".join(process.cmdline()) and "ReplicaActor" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _is_engine(process):
    return "EngineCore" in process.name() or "VLLM" in process.name()


def test_a_model_that_cannot_be_loaded_says_why_and_gives_its_lease_back(service, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    rates = [pb.Rate(input_uhs_per_mtok=1, cached_uhs_per_mtok=1, output_uhs_per_mtok=1, reasoning_uhs_per_mtok=1)]
    spec = pb.ModelSpec(name="broken", source=str(tmp_path), replicas_min=1, replicas_max=1)
    service.operator.call(pb.OfferModelRequest(request_id="offer-broken", spec=spec, rates=rates), pb.Accepted)
    model = service.until({"failed"}, name="broken")
    assert "could not be loaded" in model.reason
    service.operator.call(pb.WithdrawModelRequest(request_id="withdraw-broken", model="broken"), pb.Accepted)
    deadline = time.monotonic() + 30
    while len(leases(service)) > 1 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(leases(service)) == 1


TRAIN = """
import os
from training.demo import byte_lm

byte_lm.train(steps=10, export_to=os.path.join(os.environ["FABRIC_CHECKPOINT_DIR"], "model"))
"""


def test_what_a_job_trained_is_served_from_its_checkpoint_on_its_owners_own_cell_whose_lease_pays(service, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    account, key = service.customer("20", account=OWNER, plan="enterprise")
    job = Fabric(account).submit([sys.executable, str(script)], tokens="0.1", accelerators="H100:1")
    assert job.wait(timeout=120) == "succeeded"
    rates = [pb.Rate(input_uhs_per_mtok=1, cached_uhs_per_mtok=1, output_uhs_per_mtok=10**6, reasoning_uhs_per_mtok=1)]
    spec = pb.ModelSpec(
        name="trained", source=f"job:{job.id}", max_context=256, replicas_min=1, replicas_max=1, dedicated_to=OWNER
    )
    service.operator.call(pb.OfferModelRequest(request_id="offer-trained", spec=spec, rates=rates), pb.Accepted)
    service.until({"ready"}, name="trained")
    with client_of(service, key) as client:
        answer = client.completions.create(model="trained", prompt=TEXT, max_tokens=5)
    (cdr,) = records(account)
    assert (cdr.model, cdr.completion_tokens) == ("trained", answer.usage.completion_tokens)
    assert (cdr.covered, cdr.charged_uhs) == (True, 0)
    (lease,) = leases(service, OWNER)
    assert (list(lease.nodes), lease.account_id) == (["h100-cell"], OWNER)
    assert len(leases(service)) == 1, "the operator pays for the shared one alone"
    _, stranger = service.customer("1")
    with client_of(service, stranger) as client, pytest.raises(openai.NotFoundError):
        client.completions.create(model="trained", prompt=TEXT, max_tokens=5)
    service.operator.call(pb.WithdrawModelRequest(request_id="withdraw-trained", model="trained"), pb.Accepted)
    deadline = time.monotonic() + 60
    while leases(service, OWNER) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert leases(service, OWNER) == []


def test_two_models_stand_beside_each_other_on_one_node(service):
    """Until the last test of this folder: what follows is true of both."""
    service.until({"ready"})
    before = leases(service)
    rates = [
        pb.Rate(
            input_uhs_per_mtok=10**6, output_uhs_per_mtok=3 * 10**6, cached_uhs_per_mtok=0, reasoning_uhs_per_mtok=0
        )
    ]
    spec = {"accelerators": ["H100"], "max_context": 256, "replicas_min": 1, "replicas_max": 1}
    service.offer(SECOND, service.place / "model", rates=rates, **spec)
    account, key = service.customer("1")
    with client_of(service, key) as client:
        while service.model(SECOND) is None or service.model(SECOND).state != "ready":
            client.completions.create(model="byte-lm", prompt=TEXT, max_tokens=20)  # the first goes on while it loads
            time.sleep(0.5)
            service.until({"ready", "starting", "idle", "waiting"}, name=SECOND)
        first = client.completions.create(model="byte-lm", prompt=TEXT, max_tokens=7)
        second = client.completions.create(model=SECOND, prompt=TEXT, max_tokens=7)
        assert (first.model, second.model) == ("byte-lm", SECOND)
        contexts = {card.id: card.model_extra["max_model_len"] for card in client.models.list()}
    assert (contexts["byte-lm"], contexts[SECOND]) == (512, 256)
    (cdr,) = records(account, of=SECOND)
    assert cdr.charged_uhs == PROMPT + 3 * second.usage.completion_tokens
    both = leases(service)
    assert [lease.job_id for lease in before] == [
        lease.job_id for lease in both if lease.job_id in {each.job_id for each in before}
    ]
    assert len(both) == 2
    assert {tuple(lease.nodes) for lease in both} == {("h100-reserved",)}
    logs = sorted(path.name.rpartition("-")[0] for path in (service.place / "serving").glob("*.log"))
    assert {"byte-lm", SECOND.replace("/", "_")} <= set(logs)


PORTS = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
print(json.dumps([node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]]))
"""


def _tells(lines, name, model):
    """Whether a figure is told of that model, and not only of one with a longer name."""
    return any(name in line and f'="{model}"' in line for line in lines)


def test_the_figures_of_replicas_and_engines_are_rays_by_model_and_tier_and_tell_no_account(service):
    asked = subprocess.run(
        [sys.executable, "-c", PORTS, service.found.ray_address],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": service.found.ray_token, LOOPBACK: "0"},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    ports = json.loads(asked.stdout.splitlines()[-1])
    wanted = (
        "fabric_replica_calls",
        "fabric_replica_llm_tokens",
        "fabric_replica_first_token_seconds",
        "vllm_generation",
    )
    deadline = time.monotonic() + 60  # Ray's agents gather every ten seconds
    while time.monotonic() < deadline:
        texts = [httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text for port in ports]
        lines = [line for text in texts for line in text.splitlines() if any(name in line for name in wanted)]
        if all(_tells(lines, name, model) for name in wanted for model in ("byte-lm", SECOND)):
            break
        time.sleep(1)
    for name in wanted:
        for model in ("byte-lm", SECOND):
            assert _tells(lines, name, model), (name, model)
    ours = [line for line in lines if line.startswith("ray_fabric_replica")]
    assert any('tier="starter"' in line for line in ours)
    assert not any(word in line for line in ours for word in (OWNER, "account", "key_"))


def test_a_fabric_that_goes_down_leaves_no_process_of_an_engine(service):
    """The last test of this folder."""
    service.until({"ready"})
    family = psutil.Process(service.found.pid).children(recursive=True)
    assert sum(_is_engine(each) for each in family) >= 2, "of both models"
    engines = [each for each in psutil.process_iter() if _is_engine(each) and each.ppid() == 1]
    daemon.down(service.place)
    _, alive = psutil.wait_procs([*family, *engines], timeout=20)
    ours = [each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert [each.cmdline() for each in ours] == []
