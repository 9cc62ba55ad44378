"""Clients as people use them: OpenAI's own, synchronous and not, and LangChain's."""

import asyncio

import openai
import pytest
from langchain_openai import ChatOpenAI

from tests.serving.gateway.house import CHAT

WORDS = "w0 w1 w2 w3 w4"
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def client(house):
    async with openai.AsyncOpenAI(base_url=house.url + "/v1", api_key=house.key) as one:
        yield one


async def test_openais_client_reads_answers_and_streams(client):
    answer = await client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5)
    assert (answer.choices[0].message.content, answer.usage.completion_tokens) == (WORDS, 5)
    stream = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.delta.content for chunk in chunks for choice in chunk.choices).strip() == WORDS
    assert chunks[-1].usage.completion_tokens == 5
    assert chunks[-1].model_extra["fabric"]["charged_uhs"].isdecimal()
    text = await client.completions.create(model="tiny", prompt="hello", max_tokens=5)
    assert text.choices[0].text == WORDS
    response = await client.responses.create(model="tiny", input="hello", max_output_tokens=5)
    assert response.output_text == WORDS
    events = [
        event
        async for event in await client.responses.create(model="tiny", input="x", max_output_tokens=5, stream=True)
    ]
    assert events[-1].type == "response.completed"
    vectors = await client.embeddings.create(model="tiny", input="hello", encoding_format="float")
    assert vectors.data[0].embedding == [0.5, 0.25]
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).id == "tiny"


async def test_openais_synchronous_client_sees_the_headers(house):
    def ask():
        with openai.OpenAI(base_url=house.url + "/v1", api_key=house.key) as client:
            raw = client.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES, max_tokens=5)
            assert raw.parse().choices[0].message.content == WORDS
            return dict(raw.headers)

    headers = await asyncio.to_thread(ask)
    assert headers["x-fabric-call"].startswith("c")
    assert {"x-fabric-charged-uhs", "x-fabric-charged-ct", "x-fabric-free-uhs"} <= set(headers)


async def test_openais_client_raises_what_it_should(house, client):
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="nothing", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="sk-nothing").models.list()
    house.engine.refuse_with = (402, {"error": {"message": "needs 5, 2 free: top up", "code": "insufficient_quota"}})
    with pytest.raises(openai.APIStatusError) as broke:
        await client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert (broke.value.status_code, broke.value.code, len(house.engine.requests)) == (402, "insufficient_quota", 1)


async def test_openais_client_raises_when_a_replica_dies_in_the_middle(house, client):
    house.engine.break_after = 2
    words = []
    with pytest.raises(openai.APIError) as lost:  # noqa: PT012 - it comes while one reads
        async for chunk in await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True):
            words += [choice.delta.content for choice in chunk.choices]
    assert lost.value.code == "replica_lost"
    assert "".join(words).split() == ["w0", "w1"]
    with pytest.raises(openai.APIError):
        async for _ in await client.responses.create(model="tiny", input="x", stream=True):
            pass


async def test_openais_client_repeats_a_request_that_runs_once(house, client):
    """Its own retries carry the same key: while the first runs they wait, and then have its answer."""
    house.engine.token_s = 0.3
    impatient = client.with_options(timeout=0.5, max_retries=4)
    answer = await impatient.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=5, extra_headers={"Idempotency-Key": "k-1"}
    )
    assert answer.choices[0].message.content == WORDS
    assert len(house.engine.requests) == 1


async def test_langchain_works_as_it_is(house):
    model = ChatOpenAI(model="tiny", base_url=house.url + "/v1", api_key=house.key, max_tokens=5, stream_usage=True)
    answer = await model.ainvoke("hello")
    assert (answer.content, answer.usage_metadata["output_tokens"]) == (WORDS, 5)
    pieces = [piece async for piece in model.astream("hello")]
    assert "".join(piece.content for piece in pieces).strip() == WORDS
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) == 5


async def test_the_stand_in_is_asked_in_the_words_of_a_real_client(house, client):
    await client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=5, user="me", extra_body={"priority": -9}
    )
    ((path, _, body),) = house.engine.requests
    assert path == "/v1/chat/completions"
    assert {name: body[name] for name in CHAT} == CHAT
    assert "priority" not in body
