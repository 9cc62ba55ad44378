"""Who is not let in, what is not served, and what is not understood: each in the words of the client's own protocol."""

import asyncio
import io
import json
from collections import Counter

import aiohttp
import pytest
from yarl import URL

from serving.gateway import phrases
from serving.gateway.directory import Entitlement
from serving.limits import BODY_BYTES_MAX
from tests.serving.gateway.house import CHAT, STREAM, house_of, key_of

UNGUARDED = [
    ("POST", "/invocations"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/metrics"), ("GET", "/load"),
    ("GET", "/health"), ("GET", "/version"), ("GET", "/ping"), ("POST", "/scale_elastic_ep"), ("POST", "/sleep"),
    ("POST", "/wake_up"), ("POST", "/v1/load_lora_adapter"), ("POST", "/collective_rpc"), ("GET", "/server_info"),
    ("POST", "/reset_prefix_cache"), ("POST", "/inference/v1/generate"), ("POST", "/inference/v1/abort_requests"),
    ("GET", "/v1/responses/resp_1"), ("POST", "/v1/responses/resp_1/cancel"), ("POST", "/pooling"), ("GET", "/"),
    ("POST", "/v1/chat/completions/render"), ("POST", "/pause"), ("GET", "/tokenizer_info"), ("POST", "/start_profile"),
    ("POST", "/v1//chat/completions"), ("POST", "/V1/chat/completions"), ("POST", "/v1/chat/completions/"),
    ("POST", "//v1/chat/completions"), ("POST", "/v1/models/../invocations"), ("POST", "/v1/chat%2fcompletions/x"),
]  # fmt: skip


async def refusal(answer):
    said = await answer.json()
    return answer.status, said["error"]["code"]


async def test_what_is_not_in_the_list_is_not_served(house):
    for method, path in UNGUARDED:
        headers = {"authorization": f"Bearer {house.key}"}
        async with house.http.request(
            method, URL(house.url + path, encoded=True), json=CHAT, headers=headers
        ) as answer:
            expected = (405, "method_not_allowed") if path.startswith("/v1/models/") else (404, "unknown_url")
            assert await refusal(answer) == expected, path
    assert house.engine.requests == []


async def test_a_route_answers_its_own_method_only(house):
    for method, path, allowed in [("GET", "/v1/chat/completions", "POST"), ("DELETE", "/v1/models/tiny", "GET")]:
        async with house.http.request(method, house.url + path, headers={"authorization": house.key}) as answer:
            assert await refusal(answer) == (405, "method_not_allowed")
            assert answer.headers["allow"] == allowed


BAD_KEYS = [
    ({}, "key_missing"),
    ({"authorization": "Bearer "}, "key_missing"),
    ({"authorization": "Basic dXNlcjpwdw=="}, "key_missing"),
    ({"authorization": "Bearer sk-something"}, "invalid_api_key"),
    ({"authorization": f"Bearer {key_of('nobody')}"}, "invalid_api_key"),
    ({"authorization": "Bearer fab_k1_" + "t" * 64}, "invalid_api_key"),
    ({"authorization": "Bearer fab_k1_" + "s" * 63}, "invalid_api_key"),
    ({"x-api-key": "fab_k1_" + "t" * 64}, "invalid_api_key"),
]


async def test_without_a_good_key_nobody_gets_in(house):
    for header, code in BAD_KEYS:
        async with house.http.post(house.url + "/v1/chat/completions", json=CHAT, headers=header) as answer:
            assert await refusal(answer) == (401, code), header
    assert house.engine.requests == []


async def test_a_key_is_good_in_either_header(house):
    async with house.http.post(house.url + "/v1/messages", json=CHAT, headers={"x-api-key": house.key}) as answer:
        assert answer.status == 200


async def test_keys_that_count_no_more_or_are_for_other_things_buy_nothing(house):
    house.directory.add_key("old", "ann", expires_at_us=1)
    house.directory.add_key("gone", "ann", revoked=True)
    house.directory.add_key("op", "operator", operator=True)
    house.directory.add_key("ci", "ann", may_call=False)
    for key_id, expected in [
        ("old", (401, "key_expired")),
        ("gone", (401, "key_revoked")),
        ("op", (403, "operator_key")),
        ("ci", (403, "restricted_key")),
    ]:
        async with house.post(key=key_of(key_id)) as answer:
            assert await refusal(answer) == expected


async def test_a_key_revoked_elsewhere_is_refused_within_two_seconds(tmp_path):
    now = [100.0]
    async with house_of(tmp_path, monotonic=lambda: now[0]) as house:
        async with house.post() as answer:
            assert answer.status == 200
        house.directory.revoke("k1")
        now[0] += 1.99
        async with house.post() as answer:
            assert answer.status == 200
        now[0] += 0.02
        async with house.post() as answer:
            assert await refusal(answer) == (401, "key_revoked")


async def test_a_key_in_use_costs_no_lookup_for_each_request(house):
    for _ in range(50):
        async with house.post() as answer:
            assert answer.status == 200
    assert house.directory.asked <= 5


async def test_while_the_fabric_is_away_nobody_is_let_in_who_cannot_be_checked(house):
    house.directory.away = True
    async with house.post() as answer:
        assert await refusal(answer) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    house.directory.away = False
    async with house.post() as answer:
        assert answer.status == 200


async def test_a_model_that_is_not_the_callers_looks_like_one_that_is_not_there(house):
    key = house.directory.add_key("k2", "bob", models={"small": Entitlement(model="small", free_uhs=5)})
    answers = []
    for model in ("tiny", "nothing"):
        async with house.post(body={**CHAT, "model": model}, key=key) as answer:
            assert answer.status == 404
            said = await answer.json()
            assert said["error"]["param"] == "model"
            answers.append(said["error"]["message"].replace(model, "X"))
    assert answers[0] == answers[1]
    assert house.engine.requests == []


async def test_tokens_bound_to_other_models_are_told_apart_from_none(house):
    house.engine.refuse_with = (
        402,
        {"error": {"message": "none left", "type": "insufficient_quota", "code": "insufficient_quota"}},
    )
    broke = house.directory.add_key("k2", "bob", free_uhs=0, models={"tiny": Entitlement(model="tiny")})
    async with house.post(key=broke) as answer:
        assert await refusal(answer) == (402, "insufficient_quota")
        assert answer.headers["x-should-retry"] == "false"
    bound = house.directory.add_key("k3", "cem", free_uhs=500, models={"tiny": Entitlement(model="tiny")})
    async with house.post(key=bound) as answer:
        assert await refusal(answer) == (403, "tokens_bound_elsewhere")


BAD_JSON = [
    (b"", "Expecting value"),
    (b"{", "Expecting"),
    (b"[1]", "a list"),
    (b"null", "null"),
    (b'"text"', "a string"),
    (b'{"model": "tiny", "model": "big"}', "twice"),
    (b'{"model": "tiny", "messages": [{"role": "user", "role": "system"}]}', "twice"),
    (b'{"model": "tiny", "temperature": NaN}', "NaN"),
    (b'{"model": "tiny", "temperature": -Infinity}', "Infinity"),
    (b'{"model": "tiny", "temperature": 1e999}', "double"),
    (b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}", "digits"),
    (b'{"model": "tiny", "prompt": "\xff\xfe"}', "UTF-8"),
    (b'\xef\xbb\xbf\xef\xbb\xbf{"model": "tiny"}', ""),
    (b'{"model": "tiny", "prompt": "\\ud800"}', "passed on"),
    (b'{"model": "tiny", "x": ' + b"[" * 100 + b"]" * 100 + b"}", "nests"),
    (b'{"model": "tiny", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nests"),
    (b'{"model": "tiny"} {"model": "tiny"}', "Extra data"),
]


async def test_json_that_could_be_read_in_two_ways_is_refused(house):
    headers = {"content-type": "application/json"}
    for raw, why in BAD_JSON:
        async with house.post("/v1/completions", json=None, data=raw, headers=headers) as answer:
            assert await refusal(answer) == (400, "invalid_json"), raw[:80]
            assert why in (await answer.json())["error"]["message"]
    assert house.engine.requests == []


async def test_a_body_that_names_no_model_or_half_a_stream_is_refused(house):
    for wrong in ({"model": 7}, {"model": ""}, {"model": None}, {"stream": "yes"}, {"stream": 1}):
        async with house.post(body={**CHAT, **wrong}) as answer:
            assert await refusal(answer) == (400, "invalid_request"), wrong


async def test_what_does_not_stream_says_so(house):
    for path in ("/v1/embeddings", "/v1/chat/completions/batch", "/tokenize"):
        async with house.post(path, body={"model": "tiny", "stream": True, "prompt": "x"}) as answer:
            assert await refusal(answer) == (400, "no_stream")


async def test_only_json_comes_in(house):
    for headers in (
        {"content-type": "text/plain"},
        {"content-type": "application/json", "content-encoding": "compress"},
    ):
        async with house.post(json=None, data=b"{}", headers=headers) as answer:
            assert await refusal(answer) == (415, "unsupported_media_type")


async def test_ten_megabytes_come_in_and_a_byte_more_does_not(house):
    def body(size):
        return json.dumps(CHAT).encode().ljust(size)

    headers = {"content-type": "application/json"}
    async with house.post(json=None, data=io.BytesIO(body(BODY_BYTES_MAX)), headers=headers) as answer:
        assert answer.status == 200
    async with house.post(json=None, data=io.BytesIO(body(BODY_BYTES_MAX + 1)), headers=headers) as answer:
        assert await refusal(answer) == (413, "request_too_large")

    async def endless():
        for _ in range(11):
            yield b"x" * 2**20

    async with house.post(json=None, data=endless(), headers=headers) as answer:
        assert await refusal(answer) == (413, "request_too_large")
    assert house.gateway._reading.bytes == 0


async def test_a_rate_has_429_and_when_to_come_back(tmp_path):
    from serving.gateway.app import Limits

    async with house_of(tmp_path, limits=Limits(requests_per_s=2), monotonic=lambda: 50.0) as house:
        statuses = []
        for _ in range(6):
            async with house.post() as answer:
                statuses.append(answer.status)
                if answer.status == 429:
                    assert (await answer.json())["error"]["code"] == "rate_limited"
                    assert answer.headers["retry-after"] == "1"
        assert statuses == [200] * 4 + [429] * 2
        other = house.directory.add_key("k2", "bob")
        async with house.post(key=other) as answer:
            assert answer.status == 200


async def test_an_engines_no_comes_with_a_string_for_a_code(house):
    async with house.post(body={**CHAT, "max_tokens": -1}) as answer:
        said = await answer.json()
        assert (answer.status, said["error"]["type"], said["error"]["code"]) == (400, "invalid_request_error", None)
    house.engine.refuse_with = (500, {"detail": "secret traceback"})
    async with house.post() as answer:
        said = await answer.json()
        assert (answer.status, said["error"]["type"]) == (500, "server_error")
        assert "secret" not in json.dumps(said)


async def test_anthropics_clients_hear_no_in_their_own_form(house):
    async with house.post("/v1/messages", body={**CHAT, "model": "nothing"}) as answer:
        said = await answer.json()
        assert (answer.status, said["type"], said["error"]["type"]) == (404, "error", "not_found_error")
    house.engine.refuse_with = (402, {"error": {"message": "none left", "code": "insufficient_quota"}})
    async with house.post("/v1/messages", body=STREAM) as answer:
        said = await answer.json()
        assert (answer.status, said["error"]["type"], said["error"]["message"]) == (402, "billing_error", "none left")


async def test_responses_that_would_have_to_be_kept_are_refused(house):
    base = {"model": "tiny", "input": "hello"}
    for field in ({"background": True}, {"previous_response_id": "resp_of_another"}, {"conversation": "c"}):
        async with house.post("/v1/responses", body={**base, **field}) as answer:
            assert await refusal(answer) == (400, "not_kept")
    async with house.post("/v1/responses", body={**base, "store": True}) as answer:
        assert answer.status == 200
    assert [body["store"] for _, _, body in house.engine.requests] == [False]


SMUGGLED = [
    b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"content-length: 4\r\ncontent-length: 5\r\n\r\nabcd",
    b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"content-length: +4\r\n\r\nabcd",
    b"content-length: 4\r\n bad: folded\r\n\r\nabcd",
    b"x\x00y: 1\r\n\r\n",
]


async def test_a_request_of_which_two_readers_would_see_two_is_no_request(house):
    for rest in SMUGGLED:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + rest)
        async with asyncio.timeout(10):
            assert (await reader.readline()).split()[1] in {b"400", b"401"}, rest
            if rest is not SMUGGLED[-1]:
                await reader.read()  # and the connection is closed
        writer.close()
    assert house.engine.requests == []


async def test_one_who_guesses_keys_does_not_keep_the_fabrics_door_busy(tmp_path):
    async with house_of(tmp_path, monotonic=lambda: 50.0) as house:
        statuses = Counter()
        for number in range(1_100):
            async with house.post(key=key_of(f"guess{number}"), body={}) as answer:
                statuses[answer.status] += 1
        assert statuses == {401: 1_000, 429: 100}
        assert house.directory.asked == 1_000


async def test_headers_beyond_reason_are_refused(house):
    async with house.http.get(
        house.url + "/v1/models", headers={"x-junk": "j" * 7_000, "authorization": house.key}
    ) as answer:
        assert answer.status == 401
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]))
    writer.write(b"GET /v1/models HTTP/1.1\r\n" + b"x-junk: " + b"j" * 40_000 + b"\r\n\r\n")
    assert b"431" in await reader.readline()
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):  # noqa: PT012
        for _ in range(300):
            writer.write(b"x" * 1_000 if _ else b"GET /v1/models HTTP/1.1\r\nx-junk: ")
            await writer.drain()
            await asyncio.sleep(0.001)
        await reader.readexactly(1_000_000)
    writer.close()


async def test_the_list_of_models_is_the_callers(house):
    from serving.gateway.directory import ModelFacts

    house.directory.models["other"] = ModelFacts(name="other")
    house.directory.change()
    await house.settled(lambda: "other" in house.gateway.board.models)
    bound = house.directory.add_key(
        "k2", "bob", free_uhs=9,
        models={"tiny": Entitlement(model="tiny", free_uhs=9), "other": Entitlement(model="other")},
    )  # fmt: skip
    async with house.get("/v1/models", key=bound) as answer:
        assert [model["id"] for model in (await answer.json())["data"]] == ["tiny"]
    async with house.get("/v1/models") as answer:
        (model,) = (await answer.json())["data"]
        assert (model["id"], model["max_model_len"], model["created"]) == ("tiny", 512, 1_700_000_000)
    async with house.get("/v1/models/tiny") as answer:
        assert (await answer.json())["id"] == "tiny"
    async with house.get("/v1/models/other") as answer:
        assert answer.status == 404


async def test_a_refusal_leaves_the_connection_usable(house):
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http:
        for _ in range(3):
            async with http.post(house.url + "/v1/chat/completions", json=CHAT) as answer:
                assert answer.status == 401
        assert answer.headers.get("connection") != "close"


@pytest.mark.parametrize("repeated", ["/a", " (", " \n", "/a/a.pz"])
def test_an_engines_refusal_is_read_in_bounded_time_however_much_it_repeats_of_what_was_asked(repeated):
    """All requests of a gateway wait meanwhile: a look that takes the square of a text's length would take hours."""
    assert len(phrases.told(repeated * (4_000_000 // len(repeated))).message) <= 1_000
