"""Beside a plain vLLM of the same flags: through gateway and meter a client sees the same bodies, and the same no."""

import re
import time

import httpx
import pytest

from serving.gateway import phrases
from tests.bench.bench_serving import start_plain
from tests.serving.gateway.test_live_gateway import SURFACES, front, plain

__all__ = ["front"]
pytestmark = [pytest.mark.vllm, pytest.mark.soak, pytest.mark.timeout(400)]

CACHED = re.compile(r'"(cached_tokens|cache_read_input_tokens)":\s*[0-9]+')
SALT = re.compile(r'"cache_salt":\s*"[^"]*"|"cache_salt":\s*null')


@pytest.fixture(scope="module")
def bare(rig, model_folder):
    process, url = start_plain(model_folder, rig.spec)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None, "plain vLLM ended"
            assert time.monotonic() < deadline, "plain vLLM did not start"
            try:
                if httpx.get(url + "/health").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("name", SURFACES)
def test_a_body_is_the_same_as_plain_vllms_but_for_ids_times_and_our_fields(front, bare, name):
    path, body = SURFACES[name]
    body = {"model": "byte-lm", "temperature": 0, **body}
    if path == "/tokenize":
        del body["temperature"]
    direct = httpx.post(bare + path, json=body, timeout=60)
    passed = httpx.post(front.url + path, json=body, headers={"authorization": f"Bearer {front.key}"}, timeout=60)
    assert passed.status_code == direct.status_code
    if direct.status_code != 200:
        assert passed.json()["error"]["message"] == phrases.told(direct.json()["error"]["message"]).message
        return
    ours, theirs = (CACHED.sub("", SALT.sub("", plain(said.text))) for said in (passed, direct))
    assert ours == theirs


@pytest.mark.parametrize("name", ["chat", "completions", "responses", "messages"])
def test_a_stream_has_the_same_events_as_plain_vllms(front, bare, name):
    path, body = SURFACES[name]
    body = {"model": "byte-lm", "temperature": 0, "stream": True, **body}
    words = re.compile(r'"(?:content|text|delta)": ?"((?:[^"\\]|\\.)*)"')
    with httpx.stream("POST", bare + path, json=body, timeout=60) as answer:
        direct = "".join(answer.iter_text())
    with httpx.stream(
        "POST", front.url + path, json=body, headers={"authorization": f"Bearer {front.key}"}, timeout=60
    ) as answer:
        passed = "".join(answer.iter_text())
    assert "".join(words.findall(passed)) == "".join(words.findall(direct))
    assert re.findall(r"event: (\S+)", passed)[-1:] == re.findall(r"event: (\S+)", direct)[-1:]
    assert ("[DONE]" in passed) == ("[DONE]" in direct)
