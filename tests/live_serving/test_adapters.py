"""LoRA adapters on a real fabric: offered by their operator, called by name, billed as models of their own."""

import json

import httpx
import openai
import pytest

from fabric.errors import Conflict
from fabric.wire import fabric_pb2 as pb
from tests.live_serving.test_commands import run
from tests.live_serving.test_serving import IN, OUT, PROMPT, TEXT, client_of, leases, records
from tests.serving.adapter_maker import make_adapter

__all__ = ["run"]
DEARER = 7 * OUT


def rate(output):
    return pb.Rate(
        input_uhs_per_mtok=IN * 10**6, cached_uhs_per_mtok=0, output_uhs_per_mtok=output * 10**6,
        reasoning_uhs_per_mtok=output * 10**6,
    )  # fmt: skip


def ask(client, model, **more):
    body = {"max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}, **more}
    return client.completions.create(model=model, prompt=TEXT, **body)


def test_an_adapter_is_offered_named_priced_answered_and_billed_as_its_own_model(service, run, tmp_path):
    service.until({"ready"})
    before = leases(service)
    folder = make_adapter(tmp_path / "law", model=service.place / "model")
    rates = tmp_path / "rates.json"
    rates.write_text(
        json.dumps([{f"{kind}_uhs_per_mtok": DEARER * 10**6 for kind in ("input", "cached", "output", "reasoning")}])
    )
    run("ops", "models", "offer", "law", folder, "--adapter-of", "byte-lm", "--rates", rates)
    service.until({"ready"}, name="law")
    assert "law (adapter of byte-lm)" in run("models", "-a", "local")
    account, key = service.customer("1")
    with client_of(service, key) as client:
        cards = {card.id: card.model_extra for card in client.models.list()}
        assert (cards["law"]["parent"], cards["law"]["max_model_len"], cards["byte-lm"]["parent"]) == (
            "byte-lm",
            512,
            None,
        )
        can = {name: cards["law"]["capabilities"][name] for name in ("text", "embeddings", "scores")}
        assert can == {"text": True, "embeddings": False, "scores": False}
        assert float(cards["law"]["pricing_ct"]["completion"]) > float(cards["byte-lm"]["pricing_ct"]["completion"])
        answer, base = ask(client, "law"), ask(client, "byte-lm")
        assert (answer.model, base.model) == ("law", "byte-lm")
        assert answer.choices[0].text != base.choices[0].text
        second = make_adapter(tmp_path / "second", model=service.place / "model", seed=9)
        service.offer("law", second, parent="byte-lm", rates=[rate(DEARER)])
        until_changed(client, answer.choices[0].text)
    calls = records(account, at_least=2, of="law")
    assert calls[0].charged_uhs == (PROMPT + answer.usage.completion_tokens) * DEARER
    assert {cdr.rate_version for cdr in calls} <= {1, 2}
    assert [lease.job_id for lease in leases(service)] == [lease.job_id for lease in before], (
        "it runs where its parent does"
    )
    with pytest.raises(Conflict, match="withdraw them first"):
        service.withdraw("byte-lm")
    service.withdraw("law")


def until_changed(client, text):
    """The new version answers, sooner or later, and no call fails meanwhile."""
    for _ in range(200):
        if ask(client, "law").choices[0].text != text:
            return
    raise AssertionError("the adapter that was offered anew never came")


def test_anothers_private_adapter_is_neither_listed_nor_called_nor_told_of(service, tmp_path):
    service.until({"ready"})
    owner, key = service.customer("1")
    _, other = service.customer("1")
    folder = make_adapter(tmp_path / "mine", model=service.place / "model", seed=3)
    service.offer("mine", folder, parent="byte-lm", dedicated_to=owner.profile.account)
    service.until({"ready"}, name="mine")
    with client_of(service, key) as client:
        answer = ask(client, "mine")
    (cdr,) = records(owner)
    assert (cdr.model, cdr.covered) == ("mine", False)
    assert cdr.charged_uhs == PROMPT * IN + answer.usage.completion_tokens * OUT, "as its parent, for want of rates"
    with client_of(service, other) as client:
        assert "mine" not in [card.id for card in client.models.list()]
        with pytest.raises(openai.NotFoundError) as refused:
            ask(client, "mine")
        with pytest.raises(openai.NotFoundError) as unheard:
            ask(client, "nine")
    assert refused.value.message.replace("mine", "nine") == unheard.value.message
    service.withdraw("mine")


def test_an_adapter_that_is_not_served_says_why_to_operator_and_customer(service, tmp_path):
    service.until({"ready"})
    folder = make_adapter(tmp_path / "high", model=service.place / "model", rank=16)
    service.offer("high", folder, parent="byte-lm")
    model = service.until({"failed"}, name="high")
    why = "it has rank 16, at most 8 may be on byte-lm: train it with r=8 or lower"
    assert why in model.reason
    _, key = service.customer("1")
    asked = {"model": "high", "prompt": TEXT, "max_tokens": 3}
    answer = httpx.post(
        f"{service.found.endpoint}/completions", json=asked, headers={"authorization": f"Bearer {key}"}, timeout=60
    )
    said = answer.json()["error"]
    assert (answer.status_code, said["code"]) == (503, "model_failed")
    assert why in said["message"]
    service.withdraw("high")
