"""A server of a customer's that is told things, and what it is told by."""

import asyncio
import json
import time
from contextlib import asynccontextmanager

from aiohttp import web

from fabric.journal.followers import Position
from fabric.notifications.addresses import networks
from fabric.notifications.deliverer import Deliverer
from fabric.notifications.endpoints import Endpoint, Secret, secret_of
from fabric.notifications.notice import Kind, Notice, notice_id
from fabric.notifications.webhooks import Sender

S = 1_000_000
NOW = round(time.time()) * S
LOCAL = networks(["127.0.0.0/8"])
SECRET, OLDER = secret_of(b"n" * 32), secret_of(b"o" * 32)


class Clock:
    """Begins when a test does: the official library takes nothing that was signed more than five minutes ago."""

    def __init__(self):
        self.us = round(time.time()) * S

    def now_us(self):
        return self.us


class Receiver:
    """A server of a customer's, which answers as it is told and keeps what it gets."""

    def __init__(self):
        self.got, self.answers = [], []
        self.port = 0

    async def hear(self, request):
        return await self.take(request)

    async def take(self, request):
        body = await request.read()
        self.got.append((dict(request.headers), body))
        answer = self.answers.pop(0) if self.answers else 204
        if answer == "dies":
            request.transport.abort()
            raise asyncio.CancelledError
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(status=answer)

    @property
    def ids(self):
        return [headers["webhook-id"] for headers, _ in self.got]

    @property
    def kinds(self):
        return [json.loads(body)["type"] for _, body in self.got]


@asynccontextmanager
async def listening():
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/{tail:.*}", receiver.hear)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.port = runner.addresses[0][1]
    yield receiver
    await runner.cleanup()


def endpoint(receiver, name="e", **more):
    made = {"endpoint_id": name, "account_id": "ada", "url": f"http://127.0.0.1:{receiver.port}/", "made_at_us": 0}
    return Endpoint(**{**made, "secrets": (Secret(text=SECRET),), **more})


def notice(number, *, subject="job/j", kind=Kind.JOB_ENDED, account="ada"):
    return Notice(
        notice_id=notice_id(account, kind, number),
        account_id=account,
        kind=kind,
        subject=subject,
        at_us=NOW,
        text=f"number {number}",
        facts={"number": number},
    )


async def tell(store, *notices, seq, now_us=NOW):
    kept = await store.kept()
    assert await store.take(kept.position, Position(seq), {}, notices, now_us=now_us)


def deliverer(store, clock, **more):
    return Deliverer(store, Sender(LOCAL, **more), now_us=clock.now_us, rate_s=0)
