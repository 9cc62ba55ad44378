"""Embeddings, scores and rankings: what goes to the engine, what doesn't, and what is said of a model that can't."""

import msgspec
import pytest

from serving.gateway.directory import ModelFacts, Replica
from serving.gateway.fabric_directory import _with_abilities
from serving.gateway.routes import ROUTES

IMAGE = {"content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}
GOOD = {
    "/v1/embeddings": {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 8},
    "/v2/embed": {"texts": ["a", "b"], "input_type": "search_document", "embedding_types": ["float"]},
    "/v1/rerank": {"query": "x", "documents": ["a", "b"], "top_n": 1},
    "/v2/rerank": {"query": "x", "documents": ["a", "b"], "top_n": 1},
    "/v1/score": {"text_1": "x", "text_2": ["a", "b"]},
}
BAD = [
    *((path, flaw) for path in ("/v1/rerank", "/v2/rerank") for flaw in (
        {"documents": [IMAGE]}, {"documents": []}, {"documents": None}, {"documents": IMAGE}, {"query": IMAGE}, {"query": None},
    )),
    *(("/v1/score", flaw) for flaw in (
        {"text_1": IMAGE}, {"text_2": [IMAGE]}, {"text_2": []}, {"text_2": None},
        {"text_1": 3}, {"text_2": [["a"]]},
    )),
    *(("/v2/embed", flaw) for flaw in (
        {"texts": []}, {"texts": None}, {"texts": [IMAGE]}, {"images": ["data:image/png;base64,x"]}, {"inputs": [IMAGE]},
    )),
    ("/v1/embeddings", {"encoding_format": "bytes"}), ("/v1/embeddings", {"encoding_format": "bytes_only"}),
    ("/v1/embeddings", {"encoding_format": ["float"]}), ("/v1/embeddings", {"messages": [{"role": "user", **IMAGE}]}),
]  # fmt: skip
"""Bodies with one flaw each."""


@pytest.mark.parametrize("path", GOOD)
async def test_texts_are_embedded_scored_and_ranked(house, path):
    async with house.post(path, body={"model": "tiny", **GOOD[path]}) as answer:
        assert answer.status == 200, await answer.text()
    ((asked, _, body),) = house.engine.requests
    assert (asked, body) == (path, {"model": "tiny", **GOOD[path]})


@pytest.mark.parametrize("path", GOOD)
async def test_what_was_read_is_counted_whatever_form_the_answer_has(house, path):
    async with house.post(path, body={"model": "tiny", **GOOD[path]}) as answer:
        assert answer.status == 200
    await house.settled(lambda: b'kind="prompt"' in house.gateway.exposition())
    told = house.gateway.exposition().decode().splitlines()
    (line,) = [each for each in told if "_total{" in each and 'kind="prompt"' in each]
    assert float(line.rpartition(" ")[2]) == 3


@pytest.mark.parametrize(("path", "flaw"), BAD)
async def test_what_is_no_text_goes_to_no_engine(house, path, flaw):
    async with house.post(path, body={"model": "tiny", **GOOD[path], **flaw}) as answer:
        said = (await answer.json())["error"]
        assert (answer.status, said["type"]) == (400, "invalid_request_error")
        assert said["code"] in {"not_text", "invalid_encoding", "remote_media"}
        assert said["param"]
    assert house.engine.requests == []


SCORED = [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]


@pytest.mark.parametrize(("first", "second"), SCORED)
async def test_every_way_to_ask_for_scores_is_bounded_and_of_texts(house, first, second):
    for pair, code in (
        ((["x"] * 500, ["y"] * 600), "limit_exceeded"),
        (("x", ["y" * 200_000] * 2), "request_too_large"),
        (("x", [{"text": "y"}]), "not_text"),
    ):
        async with house.post("/v1/score", body={"model": "tiny", first: pair[0], second: pair[1]}) as answer:
            said = (await answer.json())["error"]
            assert (answer.status in {400, 413}, said["code"]) == (True, code)
    async with house.post("/v1/score", body={"model": "tiny", first: "x", second: "y"}) as answer:
        assert answer.status == 200
    assert len(house.engine.requests) == 1


@pytest.mark.parametrize("others", [{"queries": "x", "documents": ["y"]}, {"data_2": [IMAGE]}, {"items": "y"}])
async def test_a_request_for_scores_says_in_one_way_what_is_compared(house, others):
    """An engine takes the first form that it finds, which need not be the one that was looked at."""
    async with house.post("/v1/score", body={"model": "tiny", **GOOD["/v1/score"], **others}) as answer:
        said = (await answer.json())["error"]
        assert (answer.status, said["code"]) in {(400, "not_text"), (400, "remote_media")}
    assert house.engine.requests == []


async def test_a_models_card_says_what_it_can_be_asked_for(house):
    for abilities, told in (
        (set(), {"tools": True, "structured_outputs": True, "reasoning": False}),
        ({"text"}, {"text": True, "embeddings": False, "scores": False, "tools": True, "structured_outputs": True, "reasoning": False}),
        ({"embeddings", "scores"}, {"text": False, "embeddings": True, "scores": True, "tools": False, "structured_outputs": False, "reasoning": False}),
    ):  # fmt: skip
        model = house.directory.models["tiny"]
        house.directory.models["tiny"] = msgspec.structs.replace(model, abilities=frozenset(abilities))
        house.directory.change()
        await house.settled(lambda said=abilities: house.gateway.board.models["tiny"].abilities == said)
        async with house.get("/v1/models/tiny") as answer:
            assert (await answer.json())["capabilities"] == told


def test_what_a_model_can_be_asked_for_its_replicas_say():
    models = {name: ModelFacts(name=name) for name in ("tiny", "other")}
    replicas = [Replica(replica_id="r", model="tiny", address="", abilities=frozenset({"text"}))]
    found = _with_abilities(models, replicas)
    assert (found["tiny"].abilities, found["other"].abilities) == ({"text"}, frozenset())


METERED = [route for route in ROUTES if route.metered]


@pytest.mark.parametrize("route", METERED, ids=lambda route: route.path)
async def test_a_model_that_cannot_do_it_is_said_to_in_a_sentence(house, route):
    """An engine's application has the paths of what its model can do, and no others."""
    house.engine.refuse_with = (404, {"detail": "Not Found"})
    bodies = GOOD | {
        "/v1/completions": {"prompt": "x"}, "/v1/responses": {"input": "x"},
        "/v1/chat/completions/batch": {"messages": [[{"role": "user", "content": "x"}]]},
    }  # fmt: skip
    body = bodies.get(route.path, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5})
    async with house.post(route.path, body={"model": "tiny", **body}) as answer:
        said = (await answer.json())["error"]
    assert answer.status == 400
    assert said["message"].startswith("tiny ")
    assert "GET /v1/models" in said["message"]
