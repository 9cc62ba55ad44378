"""What passes the gateway, and what it looks like on the other side."""

import json

from tests.serving.gateway.house import STREAM


async def test_an_answer_passes_as_the_engine_gave_it(house):
    async with house.post() as answer:
        said = await answer.json()
        assert answer.status == 200
        assert said["choices"][0]["message"]["content"] == "w0 w1 w2 w3 w4"
        call = answer.headers["x-fabric-call"]
        assert said["id"] == f"chatcmpl-{call}"
        assert house.engine.produced == {call: 5}
        assert int(answer.headers["x-fabric-charged-uhs"]) > 0
        assert answer.headers["x-fabric-free-uhs"] == str(10**9)


async def test_a_stream_passes_event_by_event(house):
    async with house.post(body=STREAM) as answer:
        events = (await answer.read()).split(b"\n\n")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
    assert events[-2:] == [b"data: [DONE]", b""]
    words = [json.loads(event[6:])["choices"][0]["delta"]["content"] for event in events[:-2]]
    assert "".join(words).split() == ["w0", "w1", "w2", "w3", "w4"]
