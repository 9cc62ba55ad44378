"""What vLLM gives of a call: kept as it comes, cut where it is no longer paid for, put together for who doesn't stream."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams

from serving.calls import Ended


@dataclass(slots=True)
class Produced:
    """What one call has given so far, by choice."""

    ids: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, list[str]] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    cached: int | None = None
    tokens: int = 0

    def add(self, out: RequestOutput, *, only_prompt: bool = False) -> None:
        if only_prompt:
            _blank(out)
        if self.cached is None:
            self.cached = out.num_cached_tokens
        for choice in out.outputs:
            self.tokens += len(choice.token_ids)
            self.ids.setdefault(choice.index, []).extend(choice.token_ids)
            self.texts.setdefault(choice.index, []).append(choice.text)
            if choice.finish_reason is not None:
                self.finished.add(choice.index)


def cut(out: RequestOutput, produced: Produced, *, keep: int, params: SamplingParams, tokenizer: Any) -> RequestOutput:
    """The last output: of what came just now the first `keep` tokens, and an end for each choice that has none."""
    last: list[CompletionOutput] = []
    for choice in out.outputs:
        count = len(choice.token_ids)
        if keep < count:
            produced.finished.discard(choice.index)
            _shorten(choice, produced, keep, tokenizer, params)
        keep -= min(keep, count)
        last.append(choice)
    seen = {choice.index for choice in last}
    last += [_empty(index) for index in range(params.n or 1) if index not in seen | produced.finished]
    for choice in last:
        if choice.index not in produced.finished:
            choice.finish_reason, choice.stop_reason = "length", "balance_exhausted"
    out.outputs, out.finished = last, True
    return out


def _shorten(choice: CompletionOutput, produced: Produced, keep: int, tokenizer: Any, params: SamplingParams) -> None:
    """Leave the first `keep` tokens of an output, and the text that belongs to them: what was not paid was not produced."""
    drop = len(choice.token_ids) - keep
    kept = produced.ids[choice.index] = produced.ids[choice.index][:-drop]
    sent = "".join(produced.texts[choice.index][:-1])
    text = tokenizer.decode(kept, skip_special_tokens=params.skip_special_tokens).rstrip("\ufffd")
    choice.text = text[len(sent) :] if text.startswith(sent) else ""
    choice.token_ids = list(choice.token_ids[:keep])
    if choice.logprobs is not None:
        choice.logprobs = choice.logprobs[:keep]


def _blank(out: RequestOutput) -> None:
    """The prompt's own output, without the token that the engine made though none was wanted."""
    for choice in out.outputs:
        choice.token_ids, choice.text, choice.logprobs = [], "", None


def _empty(index: int) -> CompletionOutput:
    return CompletionOutput(index=index, text="", token_ids=[], cumulative_logprob=None, logprobs=None)


def nothing(request_id: str, prompt: Any, choices: int) -> RequestOutput:
    """The answer to a prompt that was not admitted, beside others that were."""
    outputs = [_empty(index) for index in range(choices)]
    for choice in outputs:
        choice.finish_reason, choice.stop_reason = "length", "balance_exhausted"
    ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
    return RequestOutput(request_id, None, ids, None, outputs, finished=True)


def why_ended(out: RequestOutput) -> Ended:
    reasons = {choice.finish_reason for choice in out.outputs}
    return "error" if "error" in reasons else "length" if "length" in reasons else "stop"


async def merged(outputs: AsyncIterator[RequestOutput]) -> AsyncGenerator[RequestOutput, None]:
    """One output, as who doesn't stream expects: the engine tells only at the end how much that was, which is too late
    for a meter, so it is asked for all of them and they are put together here.
    """
    whole: RequestOutput | None = None
    async for out in outputs:
        if whole is None:
            whole = out
        else:
            whole.add(out, aggregate=True)
            whole.num_cached_tokens = (
                out.num_cached_tokens if whole.num_cached_tokens is None else whole.num_cached_tokens
            )
    if whole is not None:
        whole.outputs.sort(key=lambda choice: choice.index)
        yield whole
