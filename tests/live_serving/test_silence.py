"""A node that falls silent: no connection breaks, and everybody hears of it all the same."""

import os
import signal
import time

import openai
import psutil
import pytest

from tests.live_serving.test_serving import TEXT, _runs_replica, client_of, leases, records


@pytest.mark.soak
def test_a_node_that_falls_silent_takes_its_streams_with_it_and_pays_for_what_they_had(service):
    """The last of its fabric: there is no other reserved node."""
    service.until({"ready"})
    (lease,) = leases(service)
    account, key = service.customer("1")
    (victim,) = [each for each in psutil.process_iter() if _runs_replica(each, lease)]
    node = victim.parent()
    assert "raylet" in node.name()
    frozen = [node, *node.children(recursive=True)]
    with client_of(service, key) as client:
        stream = client.completions.create(
            model="byte-lm", prompt=TEXT, max_tokens=500, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        for process in frozen:
            os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            with pytest.raises(openai.APIError):
                for _ in stream:
                    pass
            heard_s = time.monotonic() - began
            service.until({"waiting", "failed", "starting", "idle"}, within_s=60)
            while leases(service) and time.monotonic() - began < 120:
                time.sleep(0.5)
            print(f"the stream's client heard after {heard_s:.0f} s")
            assert leases(service) == []
        finally:
            for process in frozen:
                if process.is_running():
                    os.kill(process.pid, signal.SIGKILL)
    assert records(account, at_least=0) == [], (
        "the machine with its outbox is gone: what it held goes back when it lapses"
    )
