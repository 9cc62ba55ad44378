"""What one request may make a gateway or an engine do: every limit of a request in one place.

Each is checked before the work that it bounds begins, and says in its error the number, the limit and what to do. Nothing
here knows HTTP, an engine or who asks.
"""

from typing import Final

BODY_BYTES_MAX: Final = 10 << 20
"""Of any request."""
COUNTED_BYTES_MAX: Final = 1 << 20
"""Of a request that only counts or converts tokens, which nobody pays for."""
COUNTED_BYTES_PER_S: Final = 1 << 20
"""Of such requests, for each account at each gateway; twice as many at once."""
DEPTH_MAX: Final = 64
"""Of lists and objects in one another; a tool's JSON schema has about ten."""
VALUES_MAX: Final = 65_536
"""Of texts, lists, objects and the like in one request, numbers in lists apart: about 20,000 messages. What an engine does
with each of them, its event loop does.
"""
CHARS_PER_TOKEN_MAX: Final = 32
"""Of a prompt's text, for each token of the model's context: what is longer can't fit, and isn't made tokens to find out."""
CONTEXT_GUESS: Final = 128 << 10
"""Tokens of the context of a model whose operator didn't say."""
CHARS_ALWAYS: Final = 256 << 10
"""Of text that may come however small the context is: it may be shortened to fit (`truncate_prompt_tokens`)."""

CHOICES_MAX: Final = 128
"""`n`: answers to one prompt, which an engine begins all at once."""
PROMPTS_MAX: Final = 1_024
"""Prompts, conversations or texts in one request."""
SEQUENCES_MAX: Final = 1_024
"""Prompts x answers of one request."""
LOGPROBS_MAX: Final = 20
"""Alternatives told for each token."""

TOOLS_MAX: Final = 128
TOOLS_BYTES_MAX: Final = 512 << 10
"""Of all tools of a request, as JSON."""
GRAMMAR_BYTES_MAX: Final = 128 << 10
"""Of what shapes an answer: a JSON schema, regular expression, grammar, list of choices or structural tag, as JSON."""
PATTERN_CHARS_MAX: Final = 8_192
"""Of one regular expression."""

STOPS_MAX: Final = 64
"""Stop strings, and stop token ids."""
STOP_CHARS_MAX: Final = 1_024
"""Of one stop string."""
BAD_WORDS_MAX: Final = 256
BIASES_MAX: Final = 1_024
"""Entries of `logit_bias`."""
TOKEN_IDS_MAX: Final = 4_096
"""Of `allowed_token_ids` and `logprob_token_ids`."""

MEDIA_MAX: Final = 32
"""Images, sounds and films in one request, each sent in it as `data:`."""

GRAMMAR_CPU_S: Final = 15.0
"""Processor time, over all threads, in which a grammar must be compiled and tried: some times what the dearest honest ones
take with a vocabulary of 128,000 tokens.
"""
GRAMMAR_WALL_S: Final = 120.0
GRAMMAR_MEMORY_BYTES: Final = 1 << 30
"""Beyond what the process that compiles it has before."""
GRAMMAR_COMPILED_BYTES: Final = 64 << 20
"""Of what comes of it, which the engine has in memory while it writes answers by it."""
GRAMMAR_STEP_S: Final = 0.1
"""Processor time in which such a grammar says what may follow a token, at its slowest,"""
GRAMMAR_STEP_MEAN_S: Final = 0.01
"""and on the average of the tokens that it is tried with: so long others wait for each token."""
GRAMMAR_STEPS: Final = 256
"""Tokens that a grammar is tried with."""
GRAMMAR_NICE: Final = 5
"""How much less urgent compiling is than the answers that are being written."""
GRAMMARS_AT_ONCE: Final = 2
"""That a replica compiles at once, no two of them for one account."""
GRAMMARS_WAITING_MAX: Final = 64
"""Grammars of one account that wait to be compiled at a replica."""
GRAMMAR_BUDGET_S: Final = 120.0
"""Processor time that one account's new grammars may take at a replica in `GRAMMAR_BUDGET_PER_S`; then it must wait."""
GRAMMAR_BUDGET_PER_S: Final = 120.0
GRAMMAR_REFUSED_COUNTS: Final = 4
"""How much more the time counts of one that costs too much."""
GRAMMAR_MUCH_S: Final = 20.0
"""An account that has used more of its time than this shares one place with the others that have: one is left for the rest."""
GRAMMARS_KEPT_BYTES: Final = 16 << 20
"""Outcomes that a replica remembers."""
GRAMMARS_RUNNING_BYTES: Final = 1 << 30
"""Of compiled grammars by which an engine writes answers at a time, for each account; four times as many for all."""

ADAPTER_BYTES_MAX: Final = 2 << 30
"""Of a LoRA adapter's weights: each is kept on the node, and some of them in the engine's memory."""
ADAPTER_TENSORS_MAX: Final = 65_536
