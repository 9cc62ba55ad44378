"""Tags of calls: by header and by OpenAI's metadata, to whoever meters the call, and in what is told of it afterwards."""

import json

from fabric.api.keys import Caller
from fabric.api.serving_calls import _as_said, calls_of
from serving.calls import Call, Usage
from serving.fabric_client import _message
from serving.metering.payer import ticket_of
from tests.serving.engine_standin import TRUST
from tests.serving.gateway.house import CHAT

BODY = {**CHAT, "prompt": "x", "input": "x"}
SURFACES = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"]


async def marked(house, path="/v1/chat/completions", **more):
    """What the replica's meter is told, and what the gateway tells of the call; or the refusal."""
    tags, metadata = more.pop("tags", None), more.pop("metadata", None)
    body = BODY if metadata is None else {**BODY, "metadata": metadata}
    async with house.post(path, body, headers={} if tags is None else {"X-Fabric-Tags": tags}, **more) as answer:
        said = await answer.json()
        if answer.status != 200:
            return answer.status, said["error"]
        call = answer.headers["x-request-id"]
    _, headers, _ = house.engine.requests[-1]
    ticket = ticket_of([(name.encode(), value.encode()) for name, value in headers.items()], trust=TRUST)
    async with house.get(f"/v1/generations/{call}") as told:
        return ticket.tags, (await told.json())["fabric"]["tags"]


async def test_a_calls_tags_come_to_its_meter_and_are_told_with_what_it_cost(house):
    for path in SURFACES:
        tags, told = await marked(house, path, tags="team=red, cost-centre=4711")
        assert tags == ("team=red", "cost-centre=4711"), path
        assert told == {"team": "red", "cost-centre": "4711"}
        assert await marked(house, path) == ((), {})


async def test_openais_metadata_are_tags_where_a_surface_has_them(house):
    for path in SURFACES:
        said = {"team": "红队", "app": "a, b"} if path != "/v1/messages" else {}
        tags, told = await marked(house, path, metadata={"team": "红队", "app": "a, b"})
        assert (dict(tag.split("=", 1) for tag in tags), told) == (said, said), path


async def test_a_header_counts_before_metadata_and_both_before_what_the_key_gives(house):
    key = house.directory.add_key("k2", "ann", tags=("env=prod", "team=blue", "app=x"))
    tags, _ = await marked(house, tags="team=red", metadata={"team": "green", "app": "y"}, key=key)
    assert tags == ("env=prod", "app=y", "team=red")


async def test_what_only_a_gateway_may_say_no_client_says(house):
    """The header is read, and never passed on as it came."""
    status, error = await marked(house, tags=json.dumps(["team=red"]))
    assert (status, error["code"]) == (400, "invalid_tags")


REFUSED = [
    ("team", None, "no pair"),
    ("=red", None, "no pair"),
    ("team=red,", None, "one is empty"),
    ("team=red,,app=x", None, "one is empty"),
    ("team=red,team=red", None, "twice"),
    ("team=r\u00e9d", None, "ASCII"),
    ("team=a\tb", None, "printed"),
    (",".join(f"a{n}=1" for n in range(17)), None, "at most 16"),
    ("team=" + "x" * 257, None, "at most 256"),
    (",".join(f"a{n}={'x' * 250}" for n in range(5)), None, "at most 1024"),
    (None, {"team": 7}, "object of texts"),
    (None, ["team"], "object of texts"),
    (None, {"a=b": "c"}, "'='"),
    (None, {"": "c"}, "name"),
    (None, {"team": "a\nb"}, "printed"),
    (None, {f"a{n}": "1" for n in range(17)}, "at most 16"),
    ("a=1", {f"b{n}": "1" for n in range(16)}, "at most 16"),
]


async def test_tags_of_another_form_or_too_many_are_refused_before_anything_is_asked(house):
    for tags, metadata, why in REFUSED:
        found, error = await marked(house, tags=tags, metadata=metadata)
        assert (found, error["code"]) == (400, "invalid_tags"), (tags, metadata)
        assert error["param"] == ("X-Fabric-Tags" if tags else "metadata")
        assert why in error["message"]
    assert house.engine.requests == []
    assert await marked(house, tags="") == ((), {})


def test_a_report_carries_a_calls_tags_to_the_gate_and_no_more_than_a_record_keeps():
    call = Call("c", "ann", "k", "m", "H100", Usage(1), 0, 0, "stop", tags=("team=red",) * 40)
    (used,) = calls_of(Caller(key_id="op", operator=True, home="op"), [_message(call)])
    assert used.tags == _as_said(_message(call)).tags == ("team=red",) * 32
