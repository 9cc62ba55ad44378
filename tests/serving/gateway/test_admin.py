"""What the operator sees of a gateway, and what a replica beyond this machine must show."""

import asyncio
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fabric.api.tls import ensure_certificate
from serving.gateway.directory import Replica
from tests.serving.engine_standin import EngineStandin
from tests.serving.gateway.house import CHAT, STREAM, house_of, served


@pytest.fixture
async def house(tmp_path):
    async with house_of(tmp_path, with_admin=True) as one:
        yield one


async def test_metrics_count_by_model_and_tier_and_no_client_can_make_a_series(house):
    pro = house.directory.add_key("p", "pro", tier_rank=1)
    for key in (house.key, pro):
        async with house.post(key=key, body={**STREAM, "stream_options": {"include_usage": True}}) as answer:
            await answer.read()

    async def series():
        async with house.http.get(house.admin + "/metrics") as answer:
            return (await answer.text()).splitlines()

    lines = await series()
    assert 'fabric_gateway_requests_total{model="tiny",status="2xx",tier="professional"} 1.0' in lines
    assert 'fabric_gateway_llm_tokens_total{kind="completion",model="tiny",tier="starter"} 5.0' in lines
    assert 'fabric_gateway_replicas{model="tiny"} 1.0' in lines
    for number in range(50):
        async with house.post(body={**CHAT, "model": f"made-up-{number}"}) as answer:
            assert answer.status == 404
        async with house.post(f"/made/up/{number}") as answer:
            assert answer.status == 404
    more = await series()
    assert len(more) - len(lines) <= 8
    assert "made" not in "\n".join(more)
    assert "ann" not in "\n".join(more)


async def test_lines_are_seen_by_tier(house):
    pro = house.directory.add_key("p", "pro", tier_rank=1)
    house.directory.replicas.clear()
    house.directory.change()
    await house.settled(lambda: not house.gateway.pools.of("tiny", "ann")[0].replicas)
    asks = [asyncio.create_task(house.post(key=key).__aenter__()) for key in (pro, pro, house.key)]
    await house.settled(lambda: house.gateway.pools.of("tiny", "ann")[0].waiting == 3)
    async with house.http.get(house.admin + "/metrics") as answer:
        text = await answer.text()
    assert 'fabric_gateway_waiting{model="tiny",tier="professional"} 2.0' in text
    assert 'fabric_gateway_waiting{model="tiny",tier="starter"} 1.0' in text
    async with house.http.get(house.admin + "/lines") as answer:
        assert [(line["model"], line["waiting"]) for line in await answer.json()] == [("tiny", 3)]
    for ask in asks:
        ask.cancel()
    await house.settled(lambda: house.gateway.pools.of("tiny", "ann")[0].waiting == 0)


async def test_a_gateway_says_whether_it_is_alive_and_ready(house):
    for path, status in [("/health", 200), ("/ready", 200), ("/lines", 200), ("/anything", 404)]:
        async with house.http.get(house.admin + path) as answer:
            assert answer.status == status
    house.gateway.board_at = -1.0
    async with house.http.get(house.admin + "/ready") as answer:
        assert answer.status == 503


async def test_a_replica_must_show_the_certificate_that_the_board_names(house, tmp_path):
    files = ensure_certificate(tmp_path / "tls")
    shown = x509.load_pem_x509_certificate(files.cert.read_bytes())
    sha256 = hashlib.sha256(shown.public_bytes(Encoding.DER)).hexdigest()
    engine = EngineStandin()
    async with served(engine, certificate=files) as address:
        house.directory.replicas.clear()
        house.directory.show(Replica(replica_id="far", model="tiny", address=address, tls_sha256=sha256))
        await house.settled(lambda: house.gateway.pools.of("tiny", "ann")[0].replicas[0].replica_id == "far")
        async with house.post() as answer:
            assert answer.status == 200
        assert len(engine.requests) == 1
        impostor = Replica(replica_id="far", model="tiny", address=address, tls_sha256="0" * 64)
        other = Replica(replica_id="r2", model="tiny", address=address, tls_sha256=sha256)
        house.directory.replicas.clear()
        house.directory.show(impostor)
        house.directory.show(other)
        await house.settled(lambda: len(house.gateway.pools.of("tiny", "ann")[0].replicas) == 2)
        for number in range(6):
            async with house.post(body={**CHAT, "messages": [{"role": "user", "content": str(number)}]}) as answer:
                assert answer.status == 200
