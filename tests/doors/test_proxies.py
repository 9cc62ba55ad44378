"""A proxy of the environment: never between a client and its own machine, and used where it is meant."""

import socket
import threading
from contextlib import closing

import pytest

from fabric.api.tls import ensure_certificate
from fabric.client.client import Client
from fabric.client.profile import Profile
from fabric.errors import InvalidConfig, Unavailable
from fabric.transport import Proxy, Target, choice, parse_target, proxy_for
from fabric.wire import fabric_pb2 as pb

AWAY = Target("fabric.example", 443)
PROXY = "http://proxy.example:3128"
NAMES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy", "all_proxy")


class ConnectProxy:
    """An HTTP proxy that leads every host to one door, and says which it was asked for."""

    def __init__(self, door, *, refuse=False):
        self.asked = []
        self._door, self._refuse = door, refuse
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._lead, args=(client,), daemon=True).start()

    def _lead(self, client):
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        self.asked.append(head.decode())
        if self._refuse:
            client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            client.close()
            return
        host, _, port = self._door.rpartition(":")
        door = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        for source, sink in ((client, door), (door, client)):
            threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            sink.close()

    def close(self):
        self._listener.close()


@pytest.fixture(params=["grpcio", "http2"], autouse=True)
def transport(request, monkeypatch):
    monkeypatch.setattr(choice, "has_grpcio", lambda: request.param == "grpcio")
    monkeypatch.setattr("fabric.client.client._ATTEMPTS", 1)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def away(tmp_path, make_house):
    """A door whose certificate is also good for a host that only a proxy knows."""
    ensure_certificate(tmp_path, hosts=[AWAY.host])
    return make_house()


def asked(house, address):
    with closing(Client(Profile(address=address, api_key=house.acme, ca=str(house.tls.ca)))) as client:
        return client.call(pb.BalanceRequest(), pb.BalanceReply, timeout_s=10).account_id


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy", "HTTPS_PROXY"])
def test_a_proxy_does_not_stand_before_this_machine(house, monkeypatch, name):
    proxy = ConnectProxy(house.address, refuse=True)
    monkeypatch.setenv(name, proxy.url)
    port = house.address.rpartition(":")[2]
    assert asked(house, house.address) == "acme"
    assert asked(house, f"localhost:{port}") == "acme"
    assert proxy.asked == []
    proxy.close()


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy", "HTTPS_PROXY"])
def test_a_door_elsewhere_is_reached_through_the_proxy(away, monkeypatch, name):
    proxy = ConnectProxy(away.address)
    monkeypatch.setenv(name, proxy.url.replace("//", "//me:se%40cret@"))
    assert asked(away, f"{AWAY.host}:{AWAY.port}") == "acme"
    assert proxy.asked[0].startswith("CONNECT fabric.example:443 ")
    assert "Basic bWU6c2VAY3JldA==" in proxy.asked[0]  # me:se@cret
    proxy.close()


def test_a_proxy_that_lets_nothing_through_is_unavailable(away, monkeypatch):
    proxy = ConnectProxy(away.address, refuse=True)
    monkeypatch.setenv("https_proxy", proxy.url)
    with pytest.raises(Unavailable):
        asked(away, f"{AWAY.host}:{AWAY.port}")
    assert proxy.asked
    proxy.close()


@pytest.mark.parametrize(
    ("target", "environ", "found"),
    [
        (AWAY, {}, None),
        (AWAY, {"grpc_proxy": PROXY, "https_proxy": "http://other:1"}, Proxy("proxy.example", 3128)),
        (AWAY, {"HTTP_PROXY": "proxy.example"}, Proxy("proxy.example", 80)),
        (AWAY, {"https_proxy": PROXY, "no_proxy": "example"}, None),
        (AWAY, {"https_proxy": PROXY, "no_proxy": "other, .example"}, None),
        (AWAY, {"https_proxy": PROXY, "no_proxy": "*"}, None),
        (AWAY, {"https_proxy": PROXY, "no_proxy": "ric.example"}, Proxy("proxy.example", 3128)),
        (AWAY, {"https_proxy": PROXY, "no_grpc_proxy": "fabric.example", "no_proxy": "x"}, None),
        (Target("10.1.2.3", 1), {"https_proxy": PROXY, "NO_PROXY": "10.0.0.0/8"}, None),
        (Target("11.1.2.3", 1), {"https_proxy": PROXY, "no_proxy": "10.0.0.0/8"}, Proxy("proxy.example", 3128)),
        (Target("::1", 1), {"https_proxy": PROXY}, None),
        (Target("127.8.0.1", 1), {"https_proxy": PROXY}, None),
        (Target("LOCALHOST", 1), {"https_proxy": PROXY}, None),
        (Target("0.0.0.0", 1), {"https_proxy": PROXY}, None),
    ],
)
def test_which_proxy_is_meant(target, environ, found):
    assert proxy_for(target, environ) == found


@pytest.mark.parametrize("given", ["socks5://proxy:1080", "https://proxy:3128", "http://", "http://proxy:port"])
def test_a_proxy_that_can_not_be_used_is_told(given):
    with pytest.raises(InvalidConfig, match=r"https_proxy.*http://host:port"):
        proxy_for(AWAY, {"https_proxy": given})


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("fabric.example:443", AWAY),
        (" 10.0.0.5:50051 ", Target("10.0.0.5", 50051)),
        ("[::1]:50051", Target("::1", 50051)),
        ("my_host:1", Target("my_host", 1)),
    ],
)
def test_an_address_is_a_host_and_a_port(address, target):
    assert parse_target(address) == target


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("fabric.example", "no port"),
        ("https://fabric.example:443/x", "URL"),
        ("fabric.example:0", "from 1 to 65535"),
        ("fabric.example:70000", "from 1 to 65535"),
        ("::1:50051", "host"),
        ("a b:1", "host"),
        ("fabric.example:port", "no port"),
        ("", "no port"),
    ],
)
def test_an_address_that_is_none_says_what_is_missing(address, why):
    with pytest.raises(InvalidConfig, match=f"{why}.*host:port") as failure:
        parse_target(address)
    assert failure.value.code == "invalid_address"
