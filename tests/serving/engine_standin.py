"""A stand-in for a replica: an ASGI application that answers as vLLM's does, and counts exactly what it produced.

Deterministic: the k-th token of a completion is the word `w<k>`, a prompt has a token for each four bytes of its JSON.
What it produced for which call, and how each ended, is in `produced` and `ended`.
"""

import asyncio
import json
import sys
from collections import Counter

import uvicorn

TRUST = "trust-between-stand-ins"


class EngineStandin:
    """One replica. Set its attributes to make it misbehave."""

    def __init__(self, *, token_s=0.0, first_s=0.0, trust=None):
        self.trust = trust
        self.token_s = token_s
        self.first_s = first_s
        self.requests = []
        self.produced = Counter()
        self.ended = {}
        self.active = 0
        self.active_most = 0
        self.refuse_with = None  # (status, body)
        self.break_after = None  # tokens, then the connection is cut
        self.end_after = None  # tokens, then the stream ends as if that were all
        self.charged_uhs = None
        self.most = 10**9

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["path"] == "/health":
            await _json(send, 200, {})
            return
        if headers.get("x-fabric-trust") != (self.trust or TRUST):
            await _json(send, 403, {"error": {"message": "no trust", "type": "x", "code": 403}})
            return
        if scope["path"].startswith("/fabric/calls/"):
            await _json(send, 200, {"charged_uhs": "77"})
            return
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        body = json.loads(raw)
        self.requests.append((scope["path"], headers, body))
        call = headers["x-fabric-call"]
        self.active += 1
        self.active_most = max(self.active_most, self.active)
        work = asyncio.current_task()
        gone = asyncio.create_task(_gone(receive, work))
        try:
            await self._answer(scope["path"], body, call, send)
            self.ended[call] = "done"
        except asyncio.CancelledError:
            self.ended[call] = "client_gone"
            await self.over(call, "client_gone")
        finally:
            gone.cancel()
            self.active -= 1

    async def admit(self, call, prompt, wanted):
        """Before the first token."""

    async def made(self, call, count):
        """After each token, before it leaves; whether it may."""
        return True

    async def over(self, call, ended):
        """After the last; what it cost, where that is known."""
        return self.charged_uhs

    async def _answer(self, path, body, call, send):
        if self.refuse_with is not None:
            await _json(send, *self.refuse_with)
            return
        if path in {"/tokenize", "/detokenize", "/v1/messages/count_tokens"}:
            await _json(send, 200, {"count": 3, "tokens": [1, 2, 3], "input_tokens": 3})
            return
        if (pooled := _pooled(path, body)) is not None:
            await _json(send, 200, pooled)
            return
        await asyncio.sleep(self.first_s)
        wanted = body.get("max_tokens") or body.get("max_completion_tokens") or body.get("max_output_tokens") or 4
        if not isinstance(wanted, int) or wanted < 1:
            await _json(
                send,
                400,
                {"error": {"message": "max_tokens must be at least 1", "type": "BadRequestError", "code": 400}},
            )
            return
        wanted = min(wanted, self.most)
        prompt = len(json.dumps(body.get("messages") or body.get("prompt") or body.get("input") or "")) // 4
        make = {"/v1/completions": _text, "/v1/responses": _response, "/v1/messages": _message}.get(path, _chat)
        if body.get("stream"):
            await self._stream(make, body, call, send, prompt, wanted)
        else:
            await self._whole(make, body, call, send, prompt, wanted)

    async def _whole(self, make, body, call, send, prompt, wanted):
        await self.admit(call, prompt, wanted)
        given = 0
        for _ in range(wanted):
            await asyncio.sleep(self.token_s)  # also at 0: an engine that never waits hears of no client that is gone
            self.produced[call] += 1
            if not await self.made(call, given + 1):
                break
            given += 1
        charged = await self.over(call, "length")
        charged = prompt + 2 * given if charged is None else charged
        form = make(body, call)
        whole = form.whole(" ".join(f"w{k}" for k in range(given)), prompt, given)
        whole["fabric"] = {**form.fabric(prompt, given), "charged_uhs": str(charged)}
        await _json(send, 200, whole, [(b"x-fabric-charged-uhs", str(charged).encode())])

    async def _stream(self, make, body, call, send, prompt, wanted):
        await self.admit(call, prompt, wanted)
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        form = make(body, call)
        await _piece(send, form.begin())
        given = 0
        for k in range(wanted):
            if self.break_after == k:
                raise ConnectionAbortedError("the stand-in breaks here")
            if self.end_after == k:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            await asyncio.sleep(self.token_s)  # also at 0: an engine that never waits hears of no client that is gone
            self.produced[call] += 1
            if not await self.made(call, k + 1):
                break
            given += 1
            await _piece(send, form.token(f"w{k} "))
        await self.over(call, "length")
        await _piece(send, form.end(prompt, given))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Form:
    def __init__(self, body, call):
        self.model, self.call = body["model"], call
        options = body.get("stream_options")
        self.usage_wanted = isinstance(options, dict) and options.get("include_usage")

    def fabric(self, prompt, wanted):
        """What a replica's front says of the charge."""
        tokens = {"prompt_tokens": prompt, "cached_tokens": 0, "completion_tokens": wanted, "reasoning_tokens": 0}
        return {"call": self.call, "charged_uhs": str(prompt + 2 * wanted), "charged_ct": "0", **tokens}

    def event(self, **said):
        return b"data: " + json.dumps(said, separators=(",", ":")).encode() + b"\n\n"


class _chat(_Form):  # noqa: N801
    kind, chunk = "chat.completion", "chat.completion.chunk"

    def head(self, kind):
        return {"id": f"chatcmpl-{self.call}", "object": kind, "created": 1, "model": self.model}

    def whole(self, text, prompt, wanted):
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
        return {**self.head(self.kind), "choices": [choice], "usage": _usage(prompt, wanted)}

    def choice(self, text, finish=None):
        return {"index": 0, "delta": {"content": text}, "finish_reason": finish}

    def begin(self):
        return self.event(**self.head(self.chunk), choices=[self.choice("")])

    def token(self, text):
        return self.event(**self.head(self.chunk), choices=[self.choice(text)])

    def end(self, prompt, wanted):
        stated = {} if self.usage_wanted else {"fabric": self.fabric(prompt, wanted)}
        last = self.event(**self.head(self.chunk), choices=[self.choice("", "length")], **stated)
        usage = (
            self.event(
                **self.head(self.chunk), choices=[], usage=_usage(prompt, wanted), fabric=self.fabric(prompt, wanted)
            )
            if self.usage_wanted
            else b""
        )
        return last + usage + b"data: [DONE]\n\n"


class _text(_chat):  # noqa: N801
    kind = chunk = "text_completion"

    def whole(self, text, prompt, wanted):
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}
        return {**self.head(self.kind), "choices": [choice], "usage": _usage(prompt, wanted)}

    def choice(self, text, finish=None):
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}


class _response(_Form):  # noqa: N801
    def whole(self, text, prompt, wanted):
        content = [{"type": "output_text", "text": text, "annotations": []}]
        item = {"type": "message", "id": "msg", "role": "assistant", "status": "completed", "content": content}
        usage = {"input_tokens": prompt, "output_tokens": wanted, "total_tokens": prompt + wanted}
        return {
            "id": f"resp_{self.call}", "object": "response", "created_at": 1, "model": self.model, "status": "completed",
            "output": [item], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage,
        }  # fmt: skip

    def named(self, name, **said):
        return f"event: {name}\n".encode() + self.event(type=name, **said)

    def begin(self):
        return self.named("response.created", response=self.whole("", 0, 0), sequence_number=0)

    def token(self, text):
        return self.named(
            "response.output_text.delta",
            delta=text,
            item_id="msg",
            output_index=0,
            content_index=0,
            sequence_number=1,
            logprobs=[],
        )

    def end(self, prompt, wanted):
        return self.named(
            "response.completed",
            response=self.whole("", prompt, wanted),
            sequence_number=2,
            fabric=self.fabric(prompt, wanted),
        )


class _message(_Form):  # noqa: N801
    def whole(self, text, prompt, wanted):
        usage = {"input_tokens": prompt, "output_tokens": wanted}
        return {
            "id": f"msg_{self.call}", "type": "message", "role": "assistant", "model": self.model, "usage": usage,
            "content": [{"type": "text", "text": text}], "stop_reason": "max_tokens",
        }  # fmt: skip

    def named(self, name, **said):
        return f"event: {name}\n".encode() + self.event(type=name, **said)

    def begin(self):
        return self.named("message_start", message=self.whole("", 0, 0))

    def token(self, text):
        return self.named("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def end(self, prompt, wanted):
        usage = {"input_tokens": prompt, "output_tokens": wanted}
        return self.named(
            "message_delta", delta={"stop_reason": "max_tokens"}, usage=usage, fabric=self.fabric(prompt, wanted)
        ) + self.named("message_stop")


def _usage(prompt, wanted):
    return {"prompt_tokens": prompt, "completion_tokens": wanted, "total_tokens": prompt + wanted}


async def _gone(receive, work):
    while (await receive())["type"] != "http.disconnect":
        pass
    work.cancel()


async def _piece(send, data):
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _pooled(path, body):
    """What is answered of texts that are embedded, scored or ranked."""
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    if path in {"/v1/rerank", "/v2/rerank"}:
        results = [{"index": 0, "document": {"text": body["documents"][0]}, "relevance_score": 0.5}]
        return {"id": "score-1", "model": body["model"], "results": results, "usage": usage}
    if path == "/v1/score":
        data = [{"index": 0, "object": "score", "score": 0.5}]
        return {"object": "list", "data": data, "model": body["model"], "usage": usage}
    if path == "/v2/embed":
        booked = {"call": "c", "charged_uhs": "3", "charged_ct": "0", "prompt_tokens": 3}
        return {"id": "embd-1", "embeddings": {"float": [[0.5, 0.25]]}, "texts": body["texts"], "fabric": booked}
    if path == "/v1/embeddings":
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        return {"object": "list", "data": data, "model": body["model"], "usage": usage}
    return None


async def _json(send, status, said, headers=()):
    body = json.dumps(said, separators=(",", ":")).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def main(port, token_s):
    """A process of its own, so that it can be killed."""
    app = EngineStandin(token_s=token_s)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical", lifespan="off", ws="none", loop="uvloop")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
