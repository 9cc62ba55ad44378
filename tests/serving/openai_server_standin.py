"""A stand-in for an engine's server: speaks as vLLM's and SGLang's do, a token (or several) a chunk with the usage in each, and
ends a request by its id. It counts what it made. A real server decides (`test_live_http_engine`); this one can be made to fail.

As a program: openai_server_standin.py PORT, with a key in --api-key.
"""

import asyncio
import json
import sys

import aiohttp.web

PROMPT = 5


class ServerStandin:
    def __init__(self, *, at_once=1, models=("m",), max_context=500, key=None, token_s=0.001):
        self.at_once, self.key, self.token_s, self.max_context, self.models = at_once, key, token_s, max_context, models
        self.made, self.stopped, self.seen, self.left = 0, [], [], 0
        self.says_usage, self.breaks_at, self.obeys = True, None, True
        app = aiohttp.web.Application(middlewares=[self._keyed])
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/models", self.cards)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/inference/v1/abort_requests", self.stop)
        app.router.add_post("/abort_request", self.stop)
        self.runner = aiohttp.web.AppRunner(app, handler_cancellation=True)

    async def start(self, port=0):
        await self.runner.setup()
        site = aiohttp.web.TCPSite(self.runner, "127.0.0.1", port)
        await site.start()
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    @aiohttp.web.middleware
    async def _keyed(self, request, handler):
        if self.key and request.path != "/health" and request.headers.get("authorization") != f"Bearer {self.key}":
            return aiohttp.web.json_response({"error": "no key"}, status=401)
        return await handler(request)

    async def health(self, request):
        return aiohttp.web.Response()

    async def cards(self, request):
        cards = [{"id": name, "object": "model", "max_model_len": self.max_context} for name in self.models]
        return aiohttp.web.json_response({"object": "list", "data": cards})

    async def tokenize(self, request):
        return aiohttp.web.json_response({"count": PROMPT})

    async def stop(self, request):
        said = await request.json()
        self.stopped += said.get("request_ids") or [said["rid"]]
        return aiohttp.web.json_response({})

    async def complete(self, request):
        body = await request.json()
        self.seen.append(body)
        if body.get("temperature") == 99:
            return aiohttp.web.json_response({"error": {"message": "too hot", "code": 400}}, status=400)
        most = body["max_tokens"] if self.obeys else 10_000
        if not body.get("stream"):
            return aiohttp.web.json_response(self.whole(most, body.get("n", 1)))
        answer = aiohttp.web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        try:
            await self.stream(answer, request, most, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.left += 1
            raise
        return answer

    def whole(self, most, count):
        made = most * count
        self.made += made
        choices = [{"index": n, "text": "x", "finish_reason": "length"} for n in range(count)]
        return {"model": "theirs", "choices": choices, **self.usage(made)}

    async def stream(self, answer, request, most, body):
        total = 0
        while total < most:
            total = min(most, total + self.at_once)
            self.made += self.at_once
            if self.breaks_at is not None and total >= self.breaks_at:
                request.transport.abort()
                return
            end = "length" if total == most else None
            said = body.get("stream_options") or {}
            told = self.usage(total) if said.get("include_usage") and said.get("continuous_usage_stats") else {}
            await self.say(answer, {"choices": [{"index": 0, "text": "x", "finish_reason": end}], **told})
            await asyncio.sleep(self.token_s)
        await self.say(answer, {"choices": [], **self.usage(total)})
        await answer.write(b"data: [DONE]\n\n")

    async def say(self, answer, chunk):
        said = {"id": "cmpl-1", "model": "theirs", **chunk}
        await answer.write(b"data: " + json.dumps(said).encode() + b"\n\n")

    def usage(self, made):
        if not self.says_usage:
            return {}
        details = {"cached_tokens": 2}
        return {"usage": {"prompt_tokens": PROMPT, "completion_tokens": made, "prompt_tokens_details": details}}


async def main():
    key = sys.argv[sys.argv.index("--api-key") + 1] if "--api-key" in sys.argv else None
    port = int(sys.argv[sys.argv.index("--port") + 1])
    name = sys.argv[sys.argv.index("--served-model-name") + 1]
    await ServerStandin(key=key, models=(name,)).start(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
