"""The SDK over a real door and a real gate."""

import asyncio
import base64
import importlib
import io
import subprocess
import sys
import threading
import zipfile
from decimal import Decimal

import pytest

import fabric
from fabric.errors import InsufficientTokens, InvalidAmount, InvalidRequest, JobFailed, NotFound
from fabric.gate.events import Submit
from fabric.sdk.functions import pickle_call
from fabric.sdk.packing import pack_files
from fabric.sdk.request import parse_accelerators
from fabric.worker.payload import read_payload


def test_a_function_runs_elsewhere_and_its_value_comes_back(house):
    job = house.fabric().submit(lambda a, *, b: a + b, 40, kwargs={"b": 2}, tokens=1, accelerators="H100:2")
    assert job.result(timeout=20) == 42
    assert job.state == "succeeded"
    assert job.done()


def test_a_job_that_raises_brings_its_own_exception_as_the_cause(house):
    job = house.fabric().submit(lambda: {}["missing"], tokens=1)
    with pytest.raises(JobFailed, match="missing") as failure:
        job.result(timeout=20)
    assert isinstance(failure.value.__cause__, KeyError)
    assert failure.value.facts["job_id"] == job.id


def test_a_result_of_any_size_comes_back(house):
    assert len(house.fabric().submit(lambda: b"x" * 9_000_000, tokens=1).result(timeout=30)) == 9_000_000


def test_a_large_argument_goes_as_a_blob_of_the_account(house):
    job = house.fabric().submit(len, b"x" * 5_000_000, tokens=1)
    assert job.result(timeout=30) == 5_000_000
    assert any(key.startswith("blobs/acme/") for key in house.port.blobs)


def test_a_small_function_costs_the_archive_nothing(house):
    house.fabric().submit(lambda: None, tokens=1).result(timeout=20)
    assert not any(key.startswith("blobs/") for key in house.port.blobs)


def test_a_job_can_be_awaited(house):
    connection = house.fabric()

    async def both():
        return await asyncio.gather(*(connection.submit(pow, 2, n, tokens=1) for n in (3, 4)))

    assert asyncio.run(both()) == [8, 16]


def test_many_jobs_at_once_all_come_back(house):
    connection = house.fabric()
    found = {}

    def work(n):
        found[n] = connection.submit(lambda n=n: n * n, tokens="0.01").result(timeout=30)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: n * n for n in range(24)}


def test_waiting_survives_a_gate_that_is_away_for_a_while(house):
    house.port.run_jobs = False
    connection = house.fabric()
    job = connection.submit(lambda: 1, tokens=1)
    house.port.away = True
    with pytest.raises(TimeoutError, match="after"):
        job.result(timeout=0.3)
    house.port.away = False
    job.cancel()
    assert job.wait(timeout=20) == "cancelled"


def test_nothing_is_missed_while_the_stream_is_broken(house, monkeypatch):
    monkeypatch.setattr("fabric.sdk.feed._PAUSE_S", 1.0)
    house.port.run_jobs = False
    connection = house.fabric()
    job = connection.submit(lambda: 1, tokens=1)
    connection._feed._stream.cancel()
    house.fabric().job(job.id).cancel()
    assert job.wait(timeout=20) == "cancelled"


def test_a_job_of_before_is_found_again_by_its_id(house):
    job = house.fabric().submit(lambda: "kept", tokens=1)
    job.wait(timeout=20)
    assert house.fabric().job(job.id).result(timeout=20) == "kept"
    with pytest.raises(NotFound):
        house.fabric(house.globex).job(job.id)


def test_a_job_tells_its_cost_events_and_logs(house):
    connection = house.fabric()
    job = connection.submit(lambda: None, tokens=2, name="noop")
    job.wait(timeout=20)
    assert [event.state for event in job.events(timeout=20)][-1] == "succeeded"
    assert job.cost().settled
    assert job.cost().limit_ct == "2"
    assert "".join(job.logs()) == "running noop\n"
    assert connection.balance().account_id == "acme"
    assert [record.job_id for record in connection.usage(job_id=job.id)] == [job.id]
    assert [each.job_id for each in connection.jobs("succeeded")] == [job.id]


def test_a_job_can_be_paused_resumed_and_given_more(house):
    house.port.run_jobs = False
    job = house.fabric().submit(lambda: 1, tokens=1)
    job.pause()
    job.raise_limit("3.5")
    assert job.cost().limit_ct == "3.5"
    job.resume()
    job.cancel()
    assert job.wait(timeout=20) == "cancelled"
    assert isinstance(job.exception(timeout=5), JobFailed)


def test_a_job_never_says_less_than_it_has_said_however_late_its_news(house):
    house.port.run_jobs = False
    fabric = house.fabric()
    job = fabric.submit(lambda: 1, tokens=1)
    job.info()  # or its feed may have heard nothing yet, and would have to ask
    fabric.close()  # no news from now on
    with house.fabric() as other:
        other.job(job.id).cancel()
    job._client = house.client()
    assert job.state in {"queued", "starting"}
    assert job.cost().settled
    assert job.state == "cancelled"
    assert job.done()


def test_a_quote_changes_nothing_and_says_what_would_be_held(house):
    connection = house.fabric()
    before = house.port.gate.snapshot()
    quote = connection.quote(tokens=2, accelerators="H100:2")
    assert (quote.hold_ct, quote.devices, quote.affordable) == ("2", 2, True)
    assert not connection.quote(tokens=100_000).affordable
    assert house.port.gate.snapshot() == before


def test_a_lease_opens_when_its_devices_are_there_and_closes_with_its_block(house):
    with house.fabric().lease(tokens=1, accelerators="A100:2") as lease:
        assert lease.job.state == "running"
        assert lease.bundles == 0
    assert lease.job.wait(timeout=20) == "cancelled"


def test_more_tokens_than_there_are_is_refused_with_the_number_and_the_remedy(house):
    with pytest.raises(InsufficientTokens, match=r"needs 250 tokens, 100 free: top up 150") as refusal:
        house.fabric().submit(lambda: None, tokens=250)
    assert refusal.value.facts["short_uhs"] > 0


@pytest.mark.parametrize("tokens", [0.5, "1e3", "-1", 0, "0", True, None, "10000000000", "1.123456789", Decimal(-2)])
def test_an_amount_that_is_no_plain_decimal_is_refused_before_anything_is_sent(house, tokens):
    with pytest.raises(InvalidAmount) as refusal:
        house.fabric().submit(lambda: None, tokens=tokens)
    assert refusal.value.code == "invalid_amount"
    assert house.port.batches == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("any", ((), 1)),
        ("any:4", ((), 4)),
        ("H100", (("H100",), 1)),
        ("H100:2", (("H100",), 2)),
        (["H100:2", "A100:2"], (("H100", "A100"), 2)),
        ("910B:8", (("910B",), 8)),
        ("H100:2-4", (("H100",), 4, 2)),
        ("any:1-8", ((), 8, 1)),
        (["H100:1-2", "A100:1-2"], (("H100", "A100"), 2, 1)),
        ("H100:3-3", (("H100",), 3)),
    ],
)
def test_accelerators_are_read_as_people_write_them(given, expected):
    types, devices, *least = expected
    assert parse_accelerators(given) == (types, devices, *(least or [None]), None)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("H100:0", "invalid_accelerators"),
        ("H100:-1", "invalid_accelerators"),
        ("H100:two", "invalid_accelerators"),
        ("", "invalid_accelerators"),
        ([], "invalid_accelerators"),
        (["H100:2", "A100:4"], "one_count"),
        (["H100:1-2", "A100:2"], "one_count"),
        ("H100:4-2", "invalid_accelerators"),
        ("H100:0-2", "invalid_accelerators"),
        ("H100:2-", "invalid_accelerators"),
        ([3], "invalid_accelerators"),
    ],
)
def test_accelerators_that_make_no_sense_are_refused(given, code):
    with pytest.raises(InvalidRequest) as refusal:
        parse_accelerators(given)
    assert refusal.value.code == code


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (
            ["python", "-c", "import time\nfor _ in range(3):\n\ttime.sleep(1)\n"],
            "python -c import time for _ in range(3)",
        ),
        (["sh", "-c", "echo \x1b[2J\u00a0"], "sh -c echo [2J"),
        (["\n"], "job"),
        (["echo", "word" * 100], "echo word"),
        (type("T" * 300, (), {"__call__": lambda _: None})(), "TTT"),
    ],
)
def test_a_job_without_a_name_is_given_one_that_is_good(house, work, name):
    named = house.fabric().submit(work, tokens=1).info().name
    assert named.startswith(name)
    assert named.isprintable()


@pytest.mark.parametrize(
    "command", [["python", "-c", "pass\n" * 1000], ["sh", "-c", "x" * 300], ["x" * 300], ["./" + "y" * 300]]
)
def test_a_word_of_a_command_may_be_longer_than_a_files_name(house, command):
    assert house.fabric().submit(command, tokens=1).info().state


def test_a_script_that_no_file_can_be_is_said_not_to_be_there(house):
    with pytest.raises(InvalidRequest, match="there is no script"):
        house.fabric().submit(["python", "x" * 300], tokens=1)


def test_what_cannot_be_pickled_is_named(house):
    lock = threading.Lock()
    with pytest.raises(InvalidRequest, match=r"argument 1 \(lock\)") as refusal:
        house.fabric().submit(print, 1, lock, tokens=1)
    assert refusal.value.code == "unpicklable"
    with pytest.raises(InvalidRequest, match="variable 'lock'"):
        pickle_call(lambda: lock, (), {})
    assert house.port.batches == []


def test_a_function_of_ones_own_module_runs_where_the_module_is_not(house, tmp_path, monkeypatch):
    (tmp_path / "my_own_module.py").write_text("HALF = 21\ndef double():\n    return 2 * HALF\n")
    monkeypatch.syspath_prepend(tmp_path)
    my_own_module = importlib.import_module("my_own_module")
    house.port.run_jobs = False
    house.fabric().submit(my_own_module.double, tokens=1)
    [asked] = [event for batch in house.port.batches for event in batch if isinstance(event, Submit)]
    payload = read_payload(asked.spec.payload)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "call.pickle").write_bytes(base64.b64decode(payload.inline))
    with zipfile.ZipFile(io.BytesIO(house.port.blobs[payload.working_dir_blob])) as files:
        files.extractall(tmp_path / "far")
    code = "import pickle; f, a, k = pickle.load(open('call.pickle', 'rb')); print(f(*a, **k))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path / "far", check=True)
    assert ran.stdout == "42\n"


def test_a_script_that_is_not_there_is_refused_before_anything_is_sent(house, tmp_path):
    for job, more in (
        ("nowhere.py", {}),
        (["python", "-u", "nowhere.py"], {}),
        ("train.py", {"working_dir": tmp_path}),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            house.fabric().submit(job, tokens=1, **more)
        assert refusal.value.code == "script_not_found"
    assert house.port.batches == []


def test_a_script_travels_with_its_directory_but_without_what_is_ignored(house, tmp_path):
    (tmp_path / "train.py").write_text("print(1)")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("secret")
    (tmp_path / "big.bin").write_text("x")
    (tmp_path / ".fabricignore").write_text("*.bin\n")
    job = house.fabric().submit("train.py", "--lr", 0.1, tokens=1, working_dir=tmp_path, env={"SEED": "1"})
    assert job.result(timeout=20) is None
    [blob] = [data for key, data in house.port.blobs.items() if key.startswith("blobs/acme/")]
    assert b"train.py" in blob
    assert b"config" not in blob
    assert b"big.bin" not in blob
    assert blob == pack_files(["python", "train.py"], working_dir=tmp_path)


def test_a_directory_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fabric.sdk.packing.WORKING_DIR_BYTES_MAX", 1 << 20)
    (tmp_path / "data.bin").write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(InvalidRequest, match=r"more than 1 MiB.*\.fabricignore") as refusal:
        pack_files([], working_dir=tmp_path)
    assert refusal.value.code == "working_dir_too_large"


def test_importing_fabric_imports_nothing_heavy():
    code = "import sys, fabric; print([m for m in ('ray', 'torch', 'grpc', 'typer', 'fabric.sdk') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_sdk_never_imports_ray():
    code = "import sys, fabric; fabric.Fabric; print([m for m in ('ray', 'torch', 'fabric.gate') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_public_surface_is_this_and_no_more():
    assert fabric.__all__ == [
        "Balance", "Cost", "Fabric", "Job", "Lease", "Limits", "Quote", "Resources", "balance", "connect", "job", "jobs", "lease",
        "quote", "submit",
    ]  # fmt: skip
    for name in fabric.__all__:
        assert getattr(fabric, name).__doc__
    with pytest.raises(AttributeError):
        _ = fabric.nothing_of_that_name


def test_a_program_may_have_two_connections_that_connect_made(house):
    with (
        fabric.connect(house.address, house.acme, str(house.tls.ca)) as first,
        fabric.connect(house.address, house.globex, str(house.tls.ca)) as second,
    ):
        assert second.balance().account_id == "globex"
        assert first.submit(pow, 2, 3, tokens=1).result(timeout=30) == 8
        assert first.balance().account_id == "acme"


def test_a_connection_that_was_closed_says_so_at_once(house):
    connection = house.fabric()
    job = connection.submit(pow, 2, 3, tokens=1)
    connection.close()
    for use in (connection.balance, job.cancel, lambda: connection.submit(pow, 2, 3, tokens=1)):
        with pytest.raises(InvalidRequest, match="was closed") as refused:
            use()
        assert refused.value.code == "connection_closed"


def test_the_connection_of_the_module_is_the_one_that_connect_made(house):
    with fabric.connect(house.address, house.acme, str(house.tls.ca)):
        assert fabric.submit(max, 1, 2, tokens="0.1").result(timeout=20) == 2
        assert fabric.balance().plan == "starter"


@pytest.mark.parametrize(
    ("source", "preload"),
    [
        ("import torch\n", "torch"),
        ("from torch import nn\nimport os\n", "torch"),
        ("def f():\n    from training import session\n", "torch"),
        ("import torch\nimport ray\n", ""),
        ("import numpy\n# import torch\n", ""),
        ("", ""),
    ],
)
def test_a_script_that_imports_torch_and_not_ray_is_forked_from_a_process_that_has_it(house, tmp_path, source, preload):
    (tmp_path / "train.py").write_text(source)
    job = house.fabric().submit("train.py", tokens=1, working_dir=tmp_path)
    assert read_payload(house.port.gate.state.jobs[job.id].spec.payload).preload == preload
    job = house.fabric().submit("train.py", tokens=1, working_dir=tmp_path, preload="")
    assert read_payload(house.port.gate.state.jobs[job.id].spec.payload).preload == ""


def test_what_a_training_job_asks_for_arrives(house):
    job = house.fabric().submit(
        pow, 2, 3, tokens=1, accelerators="any:1-4", auto_park=60, mix="same-vendor", data={"s3://b/p/": 10**12},
        estimate=3600, preload="torch",
    )  # fmt: skip
    spec = house.port.gate.state.jobs[job.id].spec
    assert (spec.devices, spec.devices_least, spec.auto_park_us, spec.mix) == (4, 1, 60_000_000, "same-vendor")
    assert [(each.prefix, each.bytes) for each in spec.data] == [("s3://b/p/", 10**12)]
    assert spec.estimate_us == 3_600_000_000
    with pytest.raises(InvalidRequest) as refusal:
        house.fabric().submit(pow, 2, 3, tokens=1, preload="jax")
    assert refusal.value.code == "invalid_preload"
