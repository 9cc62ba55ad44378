"""What goes on to a replica of a request, and what does not."""

from serving.gateway.directory import Entitlement, Replica
from serving.gateway.fields import TAKEN_OUT
from tests.serving.engine_standin import TRUST
from tests.serving.gateway.house import CHAT, STREAM

CLAIMS = {
    "x-fabric-account": "victim", "x-fabric-key": "other", "x-fabric-tier-rank": "2", "x-fabric-covered": "1",
    "x-fabric-trust": "guess", "x-fabric-call": "mine", "x-fabric-key-limited": "0", "x-vllm-priority": "-100",
    "x-fabric-at-once": "100",
    "x-request-id": "mine", "x-data-parallel-rank": "3", "x-session-id": "s", "x-correlation-id": "c", "cookie": "a=b",
    "x-forwarded-for": "1.2.3.4", "endpoint-load-metrics-format": "json", "connection": "x-fabric-account",
}  # fmt: skip


async def test_nothing_a_client_claims_reaches_the_replica(house):
    async with house.post(headers=CLAIMS) as answer:
        call = answer.headers["x-fabric-call"]
    ((_, headers, _),) = house.engine.requests
    ours = {name: value for name, value in headers.items() if name.startswith("x-")}
    assert ours == {
        "x-fabric-trust": TRUST, "x-fabric-account": "ann", "x-fabric-key": "k1", "x-fabric-key-limited": "0",
        "x-fabric-tier-rank": "0", "x-fabric-call": call, "x-fabric-strict": "0", "x-fabric-covered": "0",
        "x-request-id": call, "x-fabric-at-once": "1", "x-fabric-model": "tiny",
    }  # fmt: skip
    assert set(headers) - set(ours) == {"host", "accept", "content-type", "content-length"}
    assert house.key not in str(headers)


async def test_fields_that_only_the_fabric_may_say_are_taken_out(house):
    asked = {**CHAT, **dict.fromkeys(TAKEN_OUT, 1), "user": "end-user-7", "temperature": 0.1, "vllm_xargs": {"a": 1}}
    async with house.post(body=asked) as answer:
        assert answer.status == 200
    ((_, _, body),) = house.engine.requests
    assert body == {**CHAT, "user": "end-user-7", "temperature": 0.1}


async def test_what_is_known_of_the_caller_goes_along(house):
    key = house.directory.add_key("k2", "bob", limited=True, tier_rank=1)
    async with house.post(key=key, headers={"x-fabric-strict": "true", "traceparent": "00-abc-def-01"}) as answer:
        assert answer.status == 200
    headers = house.engine.requests[-1][1]
    told = {name: headers[f"x-fabric-{name}"] for name in ("account", "key", "key-limited", "tier-rank", "strict")}
    assert told == {"account": "bob", "key": "k2", "key-limited": "1", "tier-rank": "1", "strict": "1"}
    assert headers["traceparent"] == "00-abc-def-01"


async def test_every_route_in_the_list_passes(house):
    for path, body in [
        ("/v1/chat/completions", CHAT), ("/v1/chat/completions/batch", CHAT),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 2}),
        ("/v1/responses", {"model": "tiny", "input": "x", "max_output_tokens": 2}),
        ("/v1/messages", CHAT), ("/v1/messages/count_tokens", CHAT), ("/v1/embeddings", {"model": "tiny", "input": "x"}),
        ("/tokenize", {"model": "tiny", "prompt": "x"}), ("/detokenize", {"model": "tiny", "tokens": [1]}),
    ]:  # fmt: skip
        async with house.post(path, body=body) as answer:
            assert answer.status == 200, path
        assert house.engine.requests[-1][0] == path


async def test_an_account_with_replicas_of_its_own_is_sent_there_and_covered(house, tmp_path):
    from tests.serving.engine_standin import EngineStandin
    from tests.serving.gateway.house import served

    own = EngineStandin()
    async with served(own) as address:
        house.directory.show(Replica(replica_id="own", model="tiny", address=address, dedicated_to="bob"))
        await house.settled(lambda: len(list(house.gateway.pools.items())) == 2)
        key = house.directory.add_key(
            "k2", "bob", tier_rank=2, models={"tiny": Entitlement(model="tiny", free_uhs=1, covered=True)}
        )
        async with house.post(key=key) as answer:
            assert answer.status == 200
        async with house.post() as answer:
            assert answer.status == 200
        assert [headers["x-fabric-covered"] for _, headers, _ in own.requests] == ["1"]
        assert [headers["x-fabric-account"] for _, headers, _ in house.engine.requests] == ["ann"]


async def test_what_a_replica_says_of_the_charge_passes_unchanged_and_nothing_is_added(house):
    async with house.post(body={**STREAM, "stream_options": {"include_usage": True}}) as answer:
        call = answer.headers["x-fabric-call"]
        text = await answer.text()
    assert text.count('"fabric":') == 1
    (usage,) = [line for line in text.splitlines() if '"fabric"' in line]
    prompt = int(usage.split('"prompt_tokens":')[1].split(",")[0])
    assert f'"fabric":{{"call":"{call}","charged_uhs":"{prompt + 10}"' in usage
    async with house.post(body=STREAM) as answer:
        assert (await answer.text()).count('"fabric":') == 1, (
            "where no usage is asked for, the charge is told all the same"
        )
