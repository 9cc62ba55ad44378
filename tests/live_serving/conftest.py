"""A whole fabric that serves a model: trained by the project, in a lease, behind a gateway. One for this folder's tests."""

import contextlib
import time
from pathlib import Path

import pytest

from fabric import daemon
from fabric.client.client import Client, new_request_id
from fabric.client.profile import Profile
from fabric.config.cluster import shipped
from fabric.errors import NotFound
from fabric.units import parse_ct
from fabric.wire import fabric_pb2 as pb
from fabric.wire.keys import format_key, hash_secret, make_secret
from tests.shared import shared

HERE = Path(__file__).parent
OWNER = "cell-owner"
ASCEND = "{node: ascend-spot, accelerator: 910B, devices: 8, pool: spot}"
CELL = f"{{node: h100-cell, accelerator: H100, devices: 1, pool: dedicated, dedicated_to: {OWNER}}}"
SERVING = """
serving:
  listen: 127.0.0.1:0
  tls: plain
  gateways: 2 # with HAProxy before them
  models:
    - name: byte-lm
      source: {folder}
      accelerators: [H100]
      replicas: {{min: 1, max: 1}}
      max_context: 512
      engine: {{enable-lora: true, max-lora-rank: 8}}
      rates: [{{input: 40, cached: 4, output: 400}}]
"""


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(500))


class Service:
    """The fabric and what its operator can ask and do."""

    def __init__(self, found):
        self.found = found
        self.place = Path(found.state_dir)
        self.operator = self.client("")

    def client(self, account):
        key = daemon.operator_key(self.place)
        return Client(Profile(address=self.found.address, api_key=key, ca=self.found.ca, account=account))

    def model(self, name="byte-lm"):
        models = self.operator.call(pb.ListModelsRequest(), pb.ListModelsReply).models
        return next((model for model in models if model.name == name), None)

    def until(self, states, *, name="byte-lm", within_s=240):
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            model = self.model(name)
            if model is not None and model.state in states:
                return model
            time.sleep(0.5)
        raise AssertionError(f"{model}\n{(self.place / 'serving.log').read_text()[-4000:]}")

    def offer(self, name, source, *, rates=(), **said):
        spec = pb.ModelSpec(name=name, source=str(source), **said)
        request = pb.OfferModelRequest(request_id=new_request_id(), spec=spec, rates=rates)
        return self.operator.call(request, pb.Accepted)

    def withdraw(self, name):
        return self.operator.call(pb.WithdrawModelRequest(request_id=new_request_id(), model=name), pb.Accepted)

    def customer(self, tokens, *, account="", plan="starter"):
        """A new account with so many compute tokens, and a key of it."""
        account = account or f"c-{new_request_id()[:8]}"
        client = self.client(account)
        opening = pb.OpenAccountRequest(request_id=new_request_id(), account_id=account, name="C", plan=plan)
        client.call(opening, pb.Accepted)
        client.call(
            pb.TopUpRequest(request_id=new_request_id(), amount_uhs=parse_ct(tokens), payment_ref="t"), pb.Accepted
        )
        return client, self.key_of(client)

    def key_of(self, client):
        secret = make_secret()
        reply = client.call(
            pb.CreateKeyRequest(request_id=new_request_id(), secret_sha256=hash_secret(secret), name="t"),
            pb.CreateKeyReply,
        )
        return format_key(reply.key_id, secret)


@pytest.fixture
def service(request, tmp_path_factory):
    """One for this folder."""
    return shared.of(request, HERE, "service", lambda: opened(tmp_path_factory.mktemp("house")))


@contextlib.contextmanager
def opened(place):
    from training.demo import byte_lm

    folder = place / "model"
    byte_lm.train(steps=20, export_to=str(folder), directory=folder.with_name("run"))
    text = shipped("local.yaml").read_text()
    assert ASCEND in text
    text = text.replace(ASCEND, CELL)
    config = place / "cluster.yaml"
    config.write_text(text[: text.index("# The OpenAI-compatible endpoint")] + SERVING.format(folder=folder))
    found = daemon.up(config=config, state_dir=place, any_port=True)
    try:
        yield Service(found)
    finally:
        with contextlib.suppress(NotFound):  # the last test of the folder took it down
            daemon.down(place, now=True)
