"""What clients that nobody here wrote expect of an OpenAI-compatible endpoint: headers, methods, bodies, words."""

import asyncio
import gzip
import io
import json
import zlib

import brotli
import pytest
import zstandard

from fabric.charging.rates import Rate
from serving.gateway import encodings, events
from serving.gateway.app import Limits
from serving.gateway.directory import ModelFacts, Replica
from serving.limits import BODY_BYTES_MAX
from tests.serving.gateway.house import CHAT, RATE, STREAM, house_of

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ORIGIN = {"origin": "https://app.example"}


@pytest.fixture
async def open_house(tmp_path):
    async with house_of(tmp_path, origins=("https://app.example",)) as opened:
        yield opened


async def test_every_answer_has_a_request_id_errors_included(house):
    asked = [
        ("POST", "/v1/chat/completions", {"json": CHAT}, 200), ("POST", "/v1/chat/completions", {"json": STREAM}, 200),
        ("POST", "/v1/chat/completions", {"data": b"{"}, 400), ("GET", "/v1/models", {}, 200), ("GET", "/nowhere", {}, 404),
        ("DELETE", "/v1/models", {}, 405), ("POST", "/v1/completions", {"json": {"model": "none"}}, 404),
        ("POST", "/v1/messages", {"data": io.BytesIO(b"x" * (BODY_BYTES_MAX + 1))}, 413), ("HEAD", "/v1/models", {}, 200),
        ("GET", "/v1/models", {"headers": {"x": "y" * 40_000}}, 431), ("OPTIONS", "/v1/models", {}, 405),
    ]  # fmt: skip
    seen = set()
    for method, path, more, status in asked:
        headers = {
            "authorization": f"Bearer {house.key}",
            "content-type": "application/json",
            **more.pop("headers", {}),
        }
        async with house.http.request(method, house.url + path, headers=headers, **more) as answer:
            assert answer.status == status, (method, path)
            assert answer.headers["x-request-id"] == answer.headers["x-fabric-call"]
            seen.add(answer.headers["x-request-id"])
    assert len(seen) == len(asked)


async def test_a_clients_own_id_comes_back_beside_ours(house):
    async with house.post(headers={"x-client-request-id": "mine-1"}) as answer:
        assert answer.headers["x-client-request-id"] == "mine-1"
    async with house.post(headers={"x-client-request-id": "é" * 600}) as answer:
        assert answer.status == 200
        assert "x-client-request-id" not in answer.headers


async def test_a_browser_of_a_named_origin_may_ask_and_read(open_house):
    ask = {
        **ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, x-stainless-os",
    }
    async with open_house.http.options(open_house.url + "/v1/chat/completions", headers=ask) as answer:
        assert answer.status == 204
        assert not {"content-length", "transfer-encoding"} & set(answer.headers)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
        assert "Origin" in answer.headers["vary"]
    async with open_house.post(headers=ORIGIN) as answer:
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
    async with open_house.post(headers=ORIGIN, key="wrong") as answer:
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, "https://app.example")


async def test_other_origins_and_an_endpoint_without_the_setting_say_nothing_to_browsers(open_house, house):
    for at, headers in [(open_house, {"origin": "https://evil.example"}), (house, ORIGIN)]:
        async with at.http.options(
            at.url + "/v1/models", headers={**headers, "access-control-request-method": "GET"}
        ) as answer:
            assert "access-control-allow-origin" not in answer.headers
        async with at.post(headers=headers) as answer:
            assert answer.status == 200
            assert "access-control-allow-origin" not in answer.headers


async def test_what_can_be_read_can_be_asked_for_its_head(house):
    async with house.http.head(house.url + "/v1/models", headers={"authorization": f"Bearer {house.key}"}) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        assert int(answer.headers["content-length"]) > 10


async def test_a_byte_order_mark_is_no_part_of_a_body(house):
    async with house.post(data=b"\xef\xbb\xbf" + json.dumps(CHAT).encode(), json=None, headers=JSON_TYPE) as answer:
        assert answer.status == 200


JSON_TYPE = {"content-type": "application/json"}
PACKED = {
    "gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstandard.ZstdCompressor().compress,
}  # fmt: skip


@pytest.mark.parametrize("encoding", PACKED)
async def test_a_body_may_come_compressed(house, encoding):
    packed = PACKED[encoding](json.dumps(CHAT).encode())
    async with house.post(data=packed, json=None, headers={**JSON_TYPE, "content-encoding": encoding}) as answer:
        assert answer.status == 200
    for broken in (packed[:-3], b"not that", packed + b"more"):
        async with house.post(data=broken, json=None, headers={**JSON_TYPE, "content-encoding": encoding}) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_encoding"), broken


@pytest.mark.parametrize("encoding", PACKED)
def test_what_a_small_body_becomes_is_bounded_while_it_is_unpacked(encoding):
    bomb = PACKED[encoding](b" " * (64 << 20))
    assert len(bomb) < 1 << 20
    with pytest.raises(encodings.TooLarge):
        encodings.unpacked(bomb, encoding)


async def test_an_encoding_that_is_not_known_says_which_are(house):
    async with house.post(headers={"content-encoding": "lzma"}) as answer:
        assert answer.status == 415
        assert "gzip, br, zstd" in (await answer.json())["error"]["message"]


async def test_every_answer_says_how_much_may_still_be_asked(tmp_path):
    async with house_of(tmp_path, limits=Limits(requests_per_s=5)) as house:
        left = []
        for _ in range(3):
            async with house.get("/v1/models") as answer:
                assert answer.headers["x-ratelimit-limit-requests"] == "10"
                assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
                left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
        assert left == sorted(left, reverse=True)
        assert left[0] <= 9


async def test_a_model_says_its_context_its_abilities_and_its_prices(house):
    house.directory.models["tiny"] = ModelFacts(
        name="tiny",
        created_at_us=1_700_000_000_000_000,
        max_context=512,
        rates=(RATE,),
        state="ready",
        calls_tools=True,
        reasons=True,
    )
    house.directory.add_key("k1", "ann", price_microcny_per_ct=500_000)
    house.directory.change()
    await house.settled(lambda: house.gateway.board.models["tiny"].reasons)
    async with house.get("/v1/models/tiny") as answer:
        card = await answer.json()
    assert card["max_model_len"] == card["context_length"] == 512
    assert "tools" in card["supported_parameters"]
    assert card["capabilities"]["tools"] is True
    # 1 µHs for each prompt token: 1/3_600_000_000 compute tokens, at 0.50 CNY each
    assert card["pricing"]["prompt"] == "0.000000000138889"
    assert card["pricing"]["currency"] == "CNY"
    assert card["pricing_ct"]["prompt"] == "0.000000000277778"
    assert card["pricing_ct"]["completion"] == "0.000000000555556"
    assert card["pricing_ct"]["input_cache_read"] == "0.000000000069445"
    assert card["fabric"]["rates"][0]["input_uhs_per_mtok"] == 1_000_000


def test_a_price_is_the_dearest_that_the_model_may_cost():
    from serving.gateway.cards import card

    rates = (
        RATE,
        Rate(
            model="tiny",
            version=1,
            accelerator="A100",
            input_uhs_per_mtok=3_000_000,
            cached_uhs_per_mtok=0,
            output_uhs_per_mtok=1,
            reasoning_uhs_per_mtok=1,
        ),
    )
    said = card(ModelFacts(name="tiny", rates=rates), price_microcny_per_ct=0)
    assert said["pricing_ct"]["prompt"] == "0.000000000833334"
    assert "pricing" not in said


async def calls_no_tools(house):
    house.directory.models["tiny"] = ModelFacts(name="tiny", max_context=512, rates=(RATE,), state="ready")
    house.directory.change()
    await house.settled(lambda: not house.gateway.board.models["tiny"].calls_tools)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"tools": [TOOL]}),
        ("/v1/chat/completions", {"tools": [TOOL], "tool_choice": "auto"}),
        ("/v1/responses", {"tools": [{"type": "function", "name": "f", "parameters": {}}], "input": "x"}),
        (
            "/v1/responses",
            {"tools": [{"type": "function", "name": "f", "parameters": {}}], "input": "x", "tool_choice": "required"},
        ),
        ("/v1/messages", {"tools": [{"name": "f", "input_schema": {}}]}),
    ],
)
async def test_tools_of_a_model_that_calls_none_are_refused_with_what_a_customer_can_do(house, path, body):
    await calls_no_tools(house)
    asked = {**CHAT, **body}
    if path == "/v1/responses":
        del asked["messages"]
    async with house.post(path, body=asked) as answer:
        said = await answer.json()
        assert answer.status == 400
        assert said["error"]["code"] == "tools_not_offered"
        assert "GET /v1/models" in said["error"]["message"]
        assert "--" not in said["error"]["message"]
    assert house.engine.requests == []


@pytest.mark.parametrize("choice", ["none", "required", {"type": "function", "function": {"name": "f"}}])
async def test_tools_that_are_not_the_models_to_choose_are_passed_on(house, choice):
    await calls_no_tools(house)
    async with house.post(body={**CHAT, "tools": [TOOL], "tool_choice": choice}) as answer:
        assert answer.status == 200


LONG = (
    "This model's maximum context length is 512 tokens. However, you requested 600 output tokens and your prompt contains at"
    " least 1 input tokens"
)
LONGER = (
    "You passed 513 input tokens and requested 0 output tokens. However, the model's context length is only 512 tokens"
    " (see --max-model-len)"
)
RAW = [
    ('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', "tools_not_offered"),
    (LONG, "context_length_exceeded"),
    (LONGER, "context_length_exceeded"),
    ("Requested sample logprobs of 25, which is greater than max allowed: 20. Set --max-logprobs", None),
    ("As of transformers v4.44, you must provide a chat template", "no_chat_template"),
]


@pytest.mark.parametrize(("message", "code"), RAW)
async def test_a_refusal_of_the_engines_is_told_in_words_for_customers(house, message, code):
    house.engine.refuse_with = (400, {"error": {"message": message, "type": "BadRequestError", "code": 400}})
    async with house.post() as answer:
        error = (await answer.json())["error"]
    assert error["code"] == code
    assert "--" not in error["message"]
    assert "transformers" not in error["message"]


async def test_an_engines_own_failure_is_ours_and_told_without_its_words(house):
    house.engine.refuse_with = (
        500,
        {"error": {"message": "EngineCore encountered an issue at /opt/x.py", "type": "x"}},
    )
    async with house.post() as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (500, "engine_failed")
    assert "/opt" not in error["message"]


async def kept_alive(house, path, body, headers=None):
    """The pieces that come while the request waits for a replica."""
    house.directory.show(
        Replica(replica_id="r1", model="tiny", address=house.directory.replicas["r1"].address, state="starting")
    )
    await house.settled(lambda: house.gateway.pools.of("tiny", "ann")[0].replicas[0].state == "starting")
    async with house.post(path, body=body, headers=headers) as answer:
        piece = await answer.content.readuntil(b"\n\n")
        house.directory.show(Replica(replica_id="r1", model="tiny", address=house.directory.replicas["r1"].address))
        return piece, await answer.read()


@pytest.fixture
async def quick(tmp_path):
    async with house_of(tmp_path, limits=Limits(quiet_s=0.02, keep_alive_s=0.02, requests_per_s=1_000)) as opened:
        yield opened


async def test_a_client_that_breaks_on_comments_is_kept_alive_by_chunks(quick):
    piece, _ = await kept_alive(quick, "/v1/chat/completions", STREAM, {"x-fabric-keep-alive": "chunk"})
    said = json.loads(piece.removeprefix(b"data: "))
    assert said["object"] == "chat.completion.chunk"
    assert said["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}]
    body = {"model": "tiny", "prompt": "x", "stream": True}
    piece, _ = await kept_alive(quick, "/v1/completions", body, {"user-agent": "OpenAI/Go 1.12.0"})
    assert json.loads(piece.removeprefix(b"data: "))["choices"][0]["text"] == ""


async def test_anthropics_clients_are_kept_alive_by_their_own_ping(quick):
    piece, _ = await kept_alive(quick, "/v1/messages", STREAM)
    assert piece == b'event: ping\ndata: {"type":"ping"}\n\n'


async def test_others_are_kept_alive_by_a_comment(quick):
    piece, rest = await kept_alive(quick, "/v1/chat/completions", STREAM)
    assert piece == events.WAITING
    assert b"[DONE]" in rest


async def test_texts_are_ranked_and_nothing_else_is(house):
    body = {"model": "tiny", "query": "x", "documents": ["a", "b"], "top_n": 1}
    async with house.post("/v1/rerank", body=body) as answer:
        assert (await answer.json())["results"][0]["relevance_score"] == 0.5
    image = {"content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}
    for given in (
        {"documents": [image]},
        {"documents": []},
        {"documents": None},
        {"query": image},
        {"documents": image},
    ):
        async with house.post("/v1/rerank", body={**body, **given}) as answer:
            assert answer.status == 400, given
    async with house.post("/v1/rerank", body={**body, "documents": ["x"] * 1_025}) as answer:
        assert (await answer.json())["error"]["code"] == "limit_exceeded"
    assert len(house.engine.requests) == 1


def request(house, path, body, method="POST"):
    raw = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {house.key}\r\n"
    return f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw


async def status_of_next(reader, *, has_body=True):
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).lower()
    if b"transfer-encoding: chunked" in head:
        while size := int((await reader.readline()).strip(), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    elif has_body:
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    return int(head.split()[1])


async def test_one_connection_is_good_for_many_requests_at_once_whatever_becomes_of_each(house):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]))
    asked = [
        ("POST", "/v1/chat/completions", CHAT, 200), ("POST", "/v1/chat/completions", STREAM, 200), ("HEAD", "/v1/models", None, 200),
        ("POST", "/v1/chat/completions", {"model": "no"}, 404), ("GET", "/nowhere", None, 404), ("OPTIONS", "/v1/models", None, 405),
        ("GET", "/v1/credits", None, 200), ("POST", "/v1/chat/completions", {**CHAT, "n": 10**6}, 400), ("POST", "/v1/messages", CHAT, 200),
    ] * 3  # fmt: skip
    writer.write(b"".join(request(house, path, body, method) for method, path, body, _ in asked))
    assert [await status_of_next(reader, has_body=method != "HEAD") for method, *_ in asked] == [
        each[3] for each in asked
    ]
    writer.close()
    await house.settled(lambda: not house.gateway._open)


@pytest.mark.parametrize("junk", [
    b"\x16\x03\x01junk\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n", b"\xff" * 100 + b"\r\n\r\n",
])  # fmt: skip
async def test_what_is_no_request_is_answered_with_an_id_too(house, junk):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]))
    writer.write(junk)
    said = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head, _, body = said.partition(b"\r\n\r\n")
    assert int(head.split()[1]) in {400, 431}
    assert b"x-request-id: c" in head
    assert json.loads(body)["error"]["code"] in {"invalid_http", "headers_too_large"}
