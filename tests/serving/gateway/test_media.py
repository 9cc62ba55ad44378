"""Images, sounds, films and files: in the request or not at all, on every surface, and nothing is fetched for anybody."""

import os
from pathlib import Path

from serving.engines.parts import options
from serving.gateway.routes import ROUTES
from serving.limits import MEDIA_MAX
from tests.serving.gateway.house import CHAT
from tests.serving.gateway.test_refusals import refusal

REMOTE = [
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}
        ]
    },
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}]},
    {"messages": [[{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "HTTPS://x/"}}]}]]},
    {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"image_url": "http://x"}]}]}]},
    {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
    {"input": [{"type": "input_image", "image_url": "ftp://x"}]},
    {"input": [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": "http://x"}]}]},
    {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": "http://x"}}]},
    {"input": [{"type": "custom_tool_call_output", "output": [{"type": "input_file", "file_url": "https://x/f"}]}]},
    {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "http://x"}]}]},
    {"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "http://x"}}]}]},
    {"input": [{"type": "message", "content": [{"type": "x", "content": [{"a": [{"video_url": {"url": "//x"}}]}]}]}]},
    {"input": "x", "prompt": {"id": "p", "variables": {"a": {"type": "input_image", "image_url": "http://x"}}}},
    {"input": "x", "tools": [{"type": "image_generation", "input_image_mask": {"image_url": "http://x"}}]},
    {"messages": [], "system": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]},
    {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "http://x"}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "/etc/passwd"}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "\tHTTP://x"}}]}]},
    {"messages": [{"role": "user", "content": {"type": "image_url", "image_url": {"url": "http://x"}}}]},
    {"messages": [{"role": "tool", "content": [[{"type": "image_url", "image_url": {"url": ["http://x"]}}]]}]},
    {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "s3://x"}}]}]},
]
"""On whichever surface it comes: the walk is the same for all."""


async def test_nothing_is_fetched_from_an_address_that_a_tenant_names(house):
    for body in REMOTE:
        for route in (each for each in ROUTES if each.method == "POST"):
            async with house.post(route.path, body={"model": "tiny", **body}) as answer:
                said = await answer.json()
                assert (answer.status, said["error"]["code"]) == (400, "remote_media"), (route.path, body)
    assert house.engine.requests == []


async def test_media_are_not_found_by_a_name_that_another_may_have_given(house):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}, "uuid": "of-another"}
    for given in (part, {"type": "image_url", "image_url": None, "uuid": "of-another"}):
        async with house.post(body={**CHAT, "messages": [{"role": "user", "content": [given]}]}) as answer:
            assert await refusal(answer) == (400, "media_uuid")
    assert house.engine.requests == []


async def test_there_are_no_more_media_in_a_request_than_may(house):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    for count, status in ((MEDIA_MAX, 200), (MEDIA_MAX + 1, 400)):
        async with house.post(body={**CHAT, "messages": [{"role": "user", "content": [part] * count}]}) as answer:
            assert answer.status == status


DATA = [
    {
        "messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "input": {"image_url": "http://x", "url": "y"}}]}
        ]
    },
    {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "see http://x"}]}],
        "documents": [{"url": "http://x"}],
    },
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": '{"image_url": "http://x"}'}}]}]},
    {"input": [{"content": [{"type": "output_text", "annotations": [{"type": "url_citation", "url": "http://x"}]}]}]},
    {"input": "x", "metadata": {"image_url": "http://x"}, "text": {"format": {"schema": {"image_url": "http://x"}}}},
    {
        "messages": [
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}]}
        ]
    },
    {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "AA=="}}]}]},
]


async def test_what_only_looks_like_an_address_is_passed_on(house):
    for body in DATA:
        async with house.post(body={"model": "tiny", **body}) as answer:
            assert answer.status == 200, body


def test_an_engine_fetches_nothing_whatever_its_environment_says(monkeypatch):
    monkeypatch.setenv("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "1")
    for name in (*options.QUIET, *options.BOUND):
        monkeypatch.setenv(name, "1")
    options.set_environment(on_cpu=False)
    assert os.environ["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
    argv = options.arguments(Path("m"), name="m", max_context=None, kv_bytes=None, on_cpu=False)
    flags = [*argv, *options.FLAGS]
    assert "--allowed-media-domains=media.invalid" in flags
    assert "--allowed-local-media-path=" in flags


async def test_an_image_that_comes_in_a_request_is_passed_on(house):
    inline = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "text", "text": "http://x"},
    ]
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {"url": {"const": "http://x"}}}}}
    ]
    async with house.post(body={**CHAT, "messages": [{"role": "user", "content": inline}], "tools": tools}) as answer:
        assert answer.status == 200
