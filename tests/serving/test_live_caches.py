"""Two accounts, one prompt, one engine: on every surface the second has nothing of the first's cache, and pays in full."""

import pytest

from serving.metering.payer import salt_of

from .rig import CACHED, IN, TRUST

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

BLOCK = 128


def text(surface):
    return "".join(chr(97 + (n * 7 + len(surface)) % 26) for n in range(300)) + surface


SURFACES = {
    "chat": ("/v1/chat/completions", lambda said: {"messages": [{"role": "user", "content": said}], "max_tokens": 1}),
    "batch": (
        "/v1/chat/completions/batch",
        lambda said: {"messages": [[{"role": "user", "content": said}]], "max_tokens": 1},
    ),
    "completions": ("/v1/completions", lambda said: {"prompt": said, "max_tokens": 1}),
    "responses": ("/v1/responses", lambda said: {"input": said, "max_output_tokens": 1, "store": False}),
    "messages": ("/v1/messages", lambda said: {"messages": [{"role": "user", "content": said}], "max_tokens": 1}),
}


@pytest.mark.parametrize("guessed", [False, True], ids=["as it is", "with the other's salt"])
@pytest.mark.parametrize("surface", SURFACES)
def test_what_one_account_asked_is_in_no_others_cache(rig, surface, guessed):
    path, body = SURFACES[surface]
    ann, bob = rig.account(uhs=10_000_000), rig.account(uhs=10_000_000)
    asked = {"model": "byte-lm", "temperature": 0, **body(text(surface))}
    for _ in range(2):
        answer = rig.post(path, ann, asked)
        assert answer.status_code == 200, answer.text
    _, own = sorted(rig.settled(ann, calls=2), key=lambda call: call.started_at_us)
    assert own.usage.cached_tokens >= BLOCK
    if guessed:
        asked["cache_salt"] = salt_of(ann, secret=TRUST)
    assert rig.post(path, bob, asked).status_code == 200
    (theirs,) = rig.settled(bob)
    assert theirs.usage.cached_tokens == 0
    difference = rig.ledger.charged[theirs.call_id] - rig.ledger.charged[own.call_id]
    assert difference == own.usage.cached_tokens * (IN - CACHED)
