"""Chats: notices as messages in Slack, DingTalk, Feishu or WeCom, by the addresses that apprise gives their robots.

Such an address is a secret itself, so it is shown masked. A chat knows no ids: what is sent again is seen twice. Only these four
are taken, each of which leads to its provider's own host and nowhere else, and none with options.
"""

import asyncio
import logging
import re
from typing import Final
from urllib.parse import urlsplit

from fabric.errors import InvalidRequest
from fabric.extras import needed
from fabric.notifications.endpoints import URL_MAX, Endpoint
from fabric.notifications.notice import Notice
from fabric.notifications.webhooks import ANSWERS_S, Answer, Sender

_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.~@/-]{7,}")
SCHEMES: Final = ("slack", "dingtalk", "feishu", "wecombot")


def is_chat(url: str) -> bool:
    """Whether it is an address of a chat, and no webhook's."""
    return url.partition("://")[0] in SCHEMES


def shown(url: str) -> str:
    """An address as it may be shown."""
    return f"{url.partition('://')[0]}://…" if is_chat(url) else url


def check(url: str) -> None:
    """Refuse what can be no address of a chat. Whether its provider knows it is seen when something is said: the library is not
    loaded at a door, where it would take a second of everybody's.

    Raises:
        InvalidRequest: it isn't one (`invalid_url`), or the library is not installed (`needs_extra`).
    """
    needed("apprise", by=f"a chat as in {shown(url)}")
    if len(url) > URL_MAX or not _PLAIN.fullmatch(url.partition("://")[2]):
        raise InvalidRequest(
            f"this is no address of a chat of {urlsplit(url).scheme}: see https://appriseit.com for how it is written, without options",
            code="invalid_url",
        )


class Ways:
    """To webhooks, and to chats."""

    def __init__(self, webhooks: Sender) -> None:
        """`webhooks` takes what is no chat."""
        self._webhooks = webhooks

    async def send(self, endpoint: Endpoint, notice: Notice, *, now_us: int) -> Answer:
        """One try."""
        if not is_chat(endpoint.url):
            return await self._webhooks.send(endpoint, notice, now_us=now_us)
        try:
            async with asyncio.timeout(ANSWERS_S):
                arrived = await asyncio.to_thread(_say, endpoint.url, notice)
        except Exception as error:  # noqa: BLE001 - another's library: whatever it raises, it didn't arrive
            return Answer.failed(type(error).__name__)
        return Answer(arrived=arrived, said="taken" if arrived else "not taken")


def _say(url: str, notice: Notice) -> bool:
    import apprise  # noqa: PLC0415 - an extra

    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it may name addresses
    asset = apprise.AppriseAsset(app_id="token-fabric", app_desc="token-fabric", app_url="")
    robot = apprise.Apprise.instantiate(url, asset=asset)
    return robot is not None and bool(robot.notify(body=notice.text, title=f"{notice.account_id}: {notice.kind}"))
