"""Nothing of one account's prompts is found in a cache by another: every way into the engine carries the account's salt."""

import os

import pytest

from serving.engines.parts import admission, options
from serving.gateway.routes import ROUTES
from serving.metering.payer import SignedPayer, salt_of, ticket_of

TRUST = "t" * 32
READS_NO_CACHE = "reads no cache"
CLAIMS = {
    ("POST", "/v1/chat/completions"): "generate",
    ("POST", "/v1/chat/completions/batch"): "generate",
    ("POST", "/v1/completions"): "generate",
    ("POST", "/v1/responses"): "generate",
    ("POST", "/v1/messages"): "generate",
    ("POST", "/v1/embeddings"): "encode",
    ("POST", "/v2/embed"): "encode",
    ("POST", "/v1/rerank"): "encode",
    ("POST", "/v2/rerank"): "encode",
    ("POST", "/v1/score"): "encode",
    ("POST", "/v1/messages/count_tokens"): READS_NO_CACHE,
    ("POST", "/tokenize"): READS_NO_CACHE,
    ("POST", "/detokenize"): READS_NO_CACHE,
    ("GET", "/v1/models"): READS_NO_CACHE,
    ("GET", "/metrics"): READS_NO_CACHE,
    ("GET", "/metrics/"): READS_NO_CACHE,
}
"""Where each thing that is served enters the engine. `test_engine_contract` shows that there is no third way in; whoever
serves another surface says here which of the two it takes.
"""


def ticket(account):
    return ticket_of([(b"x-fabric-trust", TRUST.encode()), (b"x-fabric-account", account.encode())], trust=TRUST)


def test_each_account_has_a_salt_of_its_own_at_every_replica_the_same():
    assert ticket("ann").salt == ticket("ann").salt == salt_of("ann", secret=TRUST)
    assert len({ticket("ann").salt, ticket("bob").salt, salt_of("ann", secret="another fabric's")}) == 3
    assert "ann" not in ticket("ann").salt


def test_what_is_served_says_where_it_enters_the_engine():
    assert {(route.method, route.path) for route in ROUTES if "{" not in route.path} <= set(CLAIMS)
    for method, path in CLAIMS:
        assert admission.is_served(method, path), path


def test_media_are_not_found_by_their_hash():
    assert "--mm-processor-cache-gb=0" in options.FLAGS


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_route_of_the_engine_is_served_that_says_nothing_of_it(monkeypatch):
    """A route that a newer vLLM adds is not served; one that we serve has a claim."""
    for name, value in options.QUIET.items():
        monkeypatch.setitem(os.environ, name, value)
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    found = set()
    for tasks in (("generate",), ("embed", "classify"), ("transcription",)):
        for route in build_app(arguments, tasks, None).routes:
            found |= {(method, route.path) for method in getattr(route, "methods", None) or ()}
    served = {(method, path) for method, path in found if admission.is_served(method, path)}
    assert {("POST", "/v1/messages"), ("POST", "/v1/responses"), ("POST", "/tokenize")} <= served
    assert served <= set(CLAIMS)
    assert {("POST", "/invocations"), ("POST", "/inference/v1/generate"), ("POST", "/generative_scoring")} <= (
        found - served
    )


HASH = "4f" * 32
PROMPTS = [
    {"type": "token", "prompt_token_ids": [1]},
    {"type": "token", "prompt_token_ids": [1], "cache_salt": "another's"},
    {"type": "embeds", "prompt_embeds": None, "cache_salt": ""},
    {"type": "multimodal", "prompt_token_ids": [1], "mm_hashes": {"image": [HASH]}},
    {"type": "enc_dec", "decoder_prompt": {"type": "token"}, "encoder_prompt": {"type": "token", "cache_salt": "x"}},
]


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_every_form_of_a_prompt_carries_the_accounts_salt_and_no_other(prompt):
    from serving.engines.parts.metered import _salted

    salted = _salted(prompt, ticket("ann"))
    for part in [salted] if "decoder_prompt" not in salted else [salted["decoder_prompt"], salted["encoder_prompt"]]:
        assert part["cache_salt"] == ticket("ann").salt
    if "mm_hashes" in salted:
        (kept,) = salted["mm_hashes"]["image"]
        assert kept != HASH
        assert _salted(prompt, ticket("bob"))["mm_hashes"]["image"] != [kept]
        assert prompt["mm_hashes"] == {"image": [HASH]}


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("prompt", ["text", [1, 2], {"prompt": "text"}, {"type": "new"}, None], ids=str)
def test_a_prompt_that_cannot_be_salted_is_not_let_in(prompt):
    from fabric.errors import Internal
    from serving.engines.parts.metered import MeteredAsyncLLM, _salted
    from serving.metering.payer import TICKET
    from serving.metering.slices import Payer

    with pytest.raises(Internal, match="apart"):
        _salted(prompt, ticket("ann"))
    with pytest.raises(Internal):
        _salted({"type": "token"}, SignedPayer(Payer("ann"), "k", "c"))
    TICKET.set(ticket("ann"))
    llm = object.__new__(MeteredAsyncLLM)
    llm.shutdown = lambda *_, **__: None
    llm.own = None
    for enter in (MeteredAsyncLLM.generate, MeteredAsyncLLM.encode):
        with pytest.raises(Internal):
            enter(llm, prompt, None, "r")
    TICKET.set(None)
