"""A fixed upstream for benchmarks: answers at once, or streams 64 chunks, one each 10 ms; does as little as it can."""

import asyncio
import sys

import uvicorn

CHUNKS = 64
CHUNK_S = 0.01
_HEAD = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[{"index":0,"delta":{"content":"'
CHUNK = _HEAD + b'word "},"finish_reason":null}]}\n\n'
LAST = (
    _HEAD + b'"},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":64,"total_tokens":73}}\n\ndata: [DONE]\n\n'
)
WHOLE = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"word"},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}'
)


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if b'"stream":true' not in body.replace(b" ", b""):
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(WHOLE)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": WHOLE})
        return
    idle = b'"idle"' in body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for number in range(CHUNKS):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await asyncio.sleep(3_600 if idle and not number else CHUNK_S)
    await send({"type": "http.response.body", "body": LAST})


def main():
    port = int(sys.argv[1])
    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", lifespan="off", ws="none", log_level="critical", backlog=4_096
    )


if __name__ == "__main__":
    main()
