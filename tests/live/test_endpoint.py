"""The endpoint beside the door of a local fabric: there without a model, for whoever has a key."""

import json
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fabric.client.client import new_request_id
from fabric.daemon.serving_host import hosts_of
from fabric.wire import fabric_pb2 as pb
from fabric.wire.keys import format_key, hash_secret, make_secret


def get(url, *, ca, key):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=ca), timeout=30) as answer:
        return json.loads(answer.read())


def once_it_listens(ask):
    deadline = time.monotonic() + 90
    while True:
        try:
            return ask()
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_the_endpoint_knows_a_customers_key_and_has_no_model_yet(running, acme):
    secret = make_secret()
    request = pb.CreateKeyRequest(request_id=new_request_id(), secret_sha256=hash_secret(secret), name="openai")
    key = format_key(acme.client.call(request, pb.CreateKeyReply).key_id, secret)
    models = once_it_listens(lambda: get(f"{running.endpoint}/models", ca=running.ca, key=key))
    assert (models["object"], models["data"]) == ("list", [])
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(f"{running.endpoint}/models", ca=running.ca, key="fab_nobody_" + "0" * 64)
    refused.value.close()
    assert refused.value.code == 401
    assert acme.client.call(pb.ListModelsRequest(), pb.ListModelsReply).endpoints == [running.endpoint]
    assert len(list(hosts_of(Path(running.state_dir)))) >= 2, "the host and a gateway"
