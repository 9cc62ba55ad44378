"""Chats: four providers' robots, each at its own host; their addresses are secrets, and nothing else is taken for one."""

import json

import pytest
import requests

from fabric.errors import Conflict, InvalidRequest
from fabric.journal.followers import Position
from fabric.notifications import chats
from fabric.notifications.chats import Ways
from fabric.notifications.desk import NoticeDesk
from fabric.notifications.webhooks import Sender
from tests.notifications.receivers import NOW, Receiver, endpoint, notice

ROBOTS = {
    "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/": "https://hooks.slack.com/",
    f"dingtalk://{'a' * 64}/": "https://oapi.dingtalk.com/",
    f"feishu://{'a' * 32}/": "https://open.feishu.cn/",
    f"wecombot://{'a' * 20}/": "https://qyapi.weixin.qq.com/",
}


pytestmark = pytest.mark.filterwarnings("ignore:'imghdr':DeprecationWarning")
"""Of one of the library's other ways."""


@pytest.fixture
def posted(monkeypatch):
    """What would be sent; a provider answers as it says."""
    found, answers = [], []

    def request(_, method, url, **more):
        found.append((url, more["data"], method))
        answer = requests.Response()
        answer.status_code = answers.pop(0) if answers else 200
        answer._content = b"ok" if "slack" in url else b'{"code": 0, "errcode": 0}'
        return answer

    monkeypatch.setattr(requests.Session, "request", request)
    found.append(answers)
    return found


@pytest.mark.parametrize(("url", "host"), ROBOTS.items(), ids=lambda each: each[:8])
async def test_a_text_goes_to_the_providers_own_host_and_what_it_refuses_is_no_arrival(posted, url, host):
    chats.check(url)
    answers, ways = posted.pop(), Ways(Sender())
    assert (await ways.send(endpoint(Receiver(), url=url), notice(1), now_us=NOW)).arrived
    ((where, said, _),) = posted
    assert where.startswith(host)
    assert "number 1" in (
        said if isinstance(said, str) else json.dumps(said) if isinstance(said, dict) else said.decode()
    )
    answers.append(500)
    assert not (await ways.send(endpoint(Receiver(), url=url), notice(2), now_us=NOW)).arrived


@pytest.mark.parametrize(
    "url",
    [
        "slack://", "slack://x", "feishu://a b/", "wecombot://x?verify=no", "dingtalk://" + "a" * 64 + "/?template=/etc/passwd",
        "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/?image=http://10.0.0.1/", "feishu://" + "a" * 3_000,
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_chat_or_has_options_is_refused(url):
    with pytest.raises(InvalidRequest) as refused:
        chats.check(url)
    assert refused.value.code == "invalid_url"


async def test_one_that_no_provider_could_know_is_no_arrival(posted):
    assert not (
        await Ways(Sender()).send(endpoint(Receiver(), url="slack://127.0.0.1/"), notice(1), now_us=NOW)
    ).arrived
    assert len(posted) == 1, "nothing was sent"


@pytest.mark.parametrize(
    "url", ["json://127.0.0.1/", "mailto://a:b@c.example", "syslog://", "file:///etc/passwd", "exec://x"]
)
async def test_no_other_of_the_librarys_ways_is_taken(store, url):
    desk = NoticeDesk(store, here=nowhere, begun=lambda: None, now_us=lambda: NOW)
    with pytest.raises(InvalidRequest) as refused:
        await desk.add("ada", url, (), request_id="r")
    assert refused.value.code == "invalid_url"


async def test_an_address_of_a_chat_is_shown_masked_and_has_no_secret_to_rotate(store):
    desk = NoticeDesk(store, here=nowhere, begun=lambda: None, now_us=lambda: NOW)
    url = next(iter(ROBOTS))
    made, secret = await desk.add("ada", url, (), request_id="r")
    assert (made["url"], secret, made["secrets"]) == ("slack://…", "", 0)
    assert await desk.add("ada", url, (), request_id="r") == (made, "")
    assert await desk.endpoints("ada") == [made]
    with pytest.raises(Conflict) as refused:
        await desk.rotate("ada", made["endpoint_id"])
    assert refused.value.code == "no_secret"


async def nowhere():
    return Position(0)
