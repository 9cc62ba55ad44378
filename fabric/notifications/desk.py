"""The desk: what customers do with their endpoints. Secrets are made here, shown once, and never logged."""

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from fabric.errors import Conflict
from fabric.journal.followers import Position
from fabric.notifications import chats
from fabric.notifications.endpoints import SECRET_BYTES, Endpoint, Secret, check_url, secret_of
from fabric.notifications.notice import Kind, Notice, notice_id
from fabric.notifications.store import NoticeStore

SHOWN_MAX: Final = 100


class NoticeDesk:
    """One for each door; several do no harm beside each other."""

    def __init__(
        self,
        store: NoticeStore,
        *,
        here: Callable[[], Awaitable[Position]],
        begun: Callable[[], None],
        now_us: Callable[[], int],
    ) -> None:
        """Take what it needs.

        Args:
            store: where endpoints are kept.
            here: the journal's end.
            begun: told that there is an endpoint now.
            now_us: what time it is.
        """
        self._store = store
        self._here = here
        self._begun = begun
        self._now_us = now_us

    async def add(
        self, account_id: str, url: str, kinds: Sequence[Kind], *, request_id: str
    ) -> tuple[dict[str, Any], str]:
        """A new endpoint, and its secret; a chat has none (""). Asked again with the same request id it is the same one.

        Raises:
            InvalidRequest: `url` is no address of a webhook.
            Conflict: the account has as many as it may have, or the request id was another endpoint's.
        """
        is_chat = chats.is_chat(url)
        chats.check(url) if is_chat else check_url(url)
        named = hashlib.sha256(f"{account_id}/{request_id}".encode()).hexdigest()[:12]
        endpoint_id = f"end-{named}"
        for each in await self._store.endpoints(account_id):
            if each.endpoint_id == endpoint_id:
                if (each.url, each.kinds) != (url, tuple(kinds)):
                    raise Conflict(
                        f"the request id {request_id!r} was for another endpoint", code="idempotency_conflict"
                    )
                return shown(each), each.secrets[0].text if each.secrets else ""
        secret = "" if is_chat else secret_of(secrets.token_bytes(SECRET_BYTES))
        endpoint = Endpoint(
            endpoint_id=endpoint_id,
            account_id=account_id,
            url=url,
            kinds=tuple(kinds),
            made_at_us=self._now_us(),
            secrets=(Secret(text=secret),) if secret else (),
        )
        await self._store.add(endpoint, from_here=await self._here())
        self._begun()
        return shown(endpoint), secret

    async def endpoints(self, account_id: str) -> list[dict[str, Any]]:
        """An account's endpoints, without their secrets."""
        return [shown(each) for each in await self._store.endpoints(account_id)]

    async def remove(self, account_id: str, endpoint_id: str) -> None:
        """An endpoint goes, with what waits for it. `NotFound` if there is none."""
        await self._store.remove(account_id, endpoint_id)

    async def rotate(self, account_id: str, endpoint_id: str) -> tuple[dict[str, Any], str]:
        """A new secret; the one before signs beside it for a day. `NotFound` if there is no such endpoint."""
        secret, now_us = secret_of(secrets.token_bytes(SECRET_BYTES)), self._now_us()

        def rotated(endpoint: Endpoint) -> Endpoint:
            if not endpoint.secrets:
                raise Conflict(f"endpoint {endpoint_id} is a chat, which has no secret of ours", code="no_secret")
            return endpoint.rotated(secret, now_us=now_us)

        changed = await self._store.change(account_id, endpoint_id, rotated)
        return shown(changed), secret

    async def test(self, account_id: str, endpoint_id: str, *, request_id: str) -> str:
        """Tell an endpoint that it can be told; the notice's id.

        Raises:
            NotFound: there is no such endpoint.
            Conflict: it has ended.
        """
        notice = Notice(
            notice_id=notice_id(account_id, Kind.TEST, endpoint_id, request_id),
            account_id=account_id,
            kind=Kind.TEST,
            subject=f"endpoint/{endpoint_id}",
            at_us=self._now_us(),
            text="a test: this endpoint can be told",
        )
        await self._store.test(account_id, endpoint_id, notice, now_us=self._now_us())
        return notice.notice_id

    async def deliveries(self, account_id: str, endpoint_id: str, limit: int) -> list[dict[str, Any]]:
        """The newest deliveries of an endpoint, newest first. `NotFound` if there is no such endpoint."""
        found = await self._store.deliveries(account_id, endpoint_id, limit=min(limit or SHOWN_MAX, SHOWN_MAX))
        return [
            {
                "notice_id": delivery.notice_id,
                "kind": notice.kind,
                "subject": delivery.subject,
                "text": notice.text,
                "at_us": notice.at_us,
                "state": delivery.state,
                "tries": delivery.tries,
                "last_at_us": delivery.last_at_us,
                "next_at_us": delivery.next_at_us if delivery.state == "due" else 0,
                "answer": delivery.answer,
            }
            for delivery, notice in found
        ]

    async def redeliver(self, account_id: str, endpoint_id: str, notice: str) -> None:
        """Deliver a notice again, under its own id. `NotFound` if the endpoint, or it, isn't there."""
        await self._store.redeliver(account_id, endpoint_id, notice, now_us=self._now_us())


def shown(endpoint: Endpoint) -> dict[str, Any]:
    """An endpoint as its owner sees it. Never its secrets."""
    return {
        "endpoint_id": endpoint.endpoint_id,
        "url": chats.shown(endpoint.url),
        "kinds": list(endpoint.kinds),
        "made_at_us": endpoint.made_at_us,
        "secrets": len(endpoint.secrets),
        "failing_since_us": endpoint.failing_since_us,
        "ended": endpoint.ended,
    }
