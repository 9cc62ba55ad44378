"""Whatever a request says that vLLM's own schema allows, or nearly: the gateway never fails."""

import asyncio
import json
import subprocess
import sys
import threading

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.serving.gateway.house import house_of
from tests.serving.gateway.openapi_of_vllm import SNAPSHOT

DOCUMENT = json.loads(SNAPSHOT.read_text())
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [operation.ok() for operation in SCHEMA.get_all_operations()]
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
"""Others are no JSON, and our client sends none of them."""
STRANGE = st.recursive(
    st.none() | st.booleans() | FLOATS | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A house in a thread of its own: schemathesis asks synchronously."""
    loop, ready, end = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    found = {}

    async def serve():
        async with house_of(tmp_path_factory.mktemp("schema")) as house:
            house.engine.most = 20
            found["house"] = house
            ready.set()
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(30)
    yield found["house"]
    loop.call_soon_threadsafe(end.set)
    thread.join(30)
    loop.close()


def test_the_schema_has_what_the_gateway_serves():
    assert set(DOCUMENT["paths"]) >= {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}
    assert len(OPERATIONS) == 8


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.path)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.name)
def test_no_request_makes_the_gateway_fail(served, operation, mode):
    passed = []

    @settings(max_examples=6, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(
        case=operation.as_strategy(generation_mode=mode), ours=st.booleans(), field=st.text(max_size=8), strange=STRANGE
    )
    def ask(case, ours, field, strange):
        if ours and isinstance(case.body, dict):
            case.body["model"] = "tiny"
            case.body[field] = strange
        answer = case.call(base_url=served.url, headers={"authorization": f"Bearer {served.key}"}, timeout=30)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            said = answer.json()["error"]
            assert said["message"]
        passed.append(answer.status_code)

    ask()
    assert passed


@pytest.mark.vllm
def test_the_snapshot_is_what_the_installed_vllm_says(tmp_path):
    pytest.importorskip("vllm.version", reason="vLLM is not installed")
    command = [sys.executable, "-m", "tests.serving.gateway.openapi_of_vllm", str(tmp_path / "now.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    assert (tmp_path / "now.json").read_text() == SNAPSHOT.read_text()
