"""Following a job: through a gate that restarts and connections that break, to its very end, or to Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from fabric.errors import Unavailable
from fabric.gate.events import Cancel
from fabric.gate.views import LogChunk
from fabric.transport import choice

LINES = [f"line {n}\n".encode() for n in range(4)]
PATIENT_S = 60


@pytest.fixture(params=["grpcio", "http2"])
def transport(request, monkeypatch):
    monkeypatch.setattr(choice, "has_grpcio", lambda: request.param == "grpcio")


@pytest.fixture
def job(house, transport):
    """One that goes on until the test ends it."""
    house.port.run_jobs = False
    return house.fabric().submit(["true"], tokens=1)


class Log:
    """What a door streams of a log, with whatever becomes of each stream."""

    def __init__(self, house, job, *ends):
        self.asked = []
        self._house, self._job, self._ends = house, job, list(ends)
        house.port.logs = self.stream

    async def stream(self, job_id, *, offsets, follow):
        self.asked.append(offsets.get("1/0", 0))
        come, end = self._ends.pop(0)
        whole, start = b"".join(LINES[:come]), offsets.get("1/0", 0)
        if whole[start:]:
            yield LogChunk(rank=0, attempt=1, offset=start, data=whole[start:])
        if end == "job ends":
            self._house.port.seed(Cancel(job_id=self._job.id, account_id="acme", at_once=True))
        elif end is not None:
            raise end


AWAY = Unavailable("the gate is restarting: try again", code="gate_restarting")


def test_a_gate_that_restarts_before_the_first_line_is_waited_for(house, job, monkeypatch):
    monkeypatch.setattr("fabric.client.client._PAUSE_MAX_S", 0.01)
    Log(house, job, *[(0, AWAY)] * 12, (4, "job ends"))
    assert "".join(job.logs(follow=True)) == b"".join(LINES).decode()


def test_a_follow_whose_stream_ends_goes_on_while_the_job_does(house, job):
    """A stream that ends well before the job has is no end: a door that closes, a proxy's time limit."""
    log = Log(house, job, (1, None), (1, None), (3, None), (4, "job ends"))
    assert "".join(job.logs(follow=True)) == b"".join(LINES).decode()
    assert log.asked == [0, len(LINES[0]), len(LINES[0]), len(b"".join(LINES[:3]))]


def test_a_follow_asks_for_the_last_lines_of_a_job_that_has_ended(house, job):
    """The stream was cut with the job's end: what was written last comes all the same."""
    job.cancel()
    Log(house, job, (2, AWAY), (4, None))
    assert "".join(job.logs(follow=True)) == b"".join(LINES).decode()


def test_a_follow_ends_with_the_error_and_never_well_where_the_fabric_stays_away(house, job, monkeypatch):
    monkeypatch.setattr("fabric.client.client._FOLLOWS_AWAY_S", 0.3)
    Log(house, job, (2, None), *[(2, AWAY)] * 100)
    seen = []
    with pytest.raises(Unavailable):
        seen.extend(job.logs(follow=True))
    assert "".join(seen) == b"".join(LINES[:2]).decode()


def test_whoever_follows_is_told_once_that_the_fabric_is_away(house, job, monkeypatch):
    monkeypatch.setattr("fabric.client.client._PAUSE_MAX_S", 0.01)
    told = []
    client = job._client
    Log(house, job, *[(0, AWAY)] * 5, (2, None), *[(2, AWAY)] * 5, (4, "job ends"))
    list(client.logs(job.id, follow=True, on_away=told.append))
    assert [error.code for error in told] == ["gate_restarting"] * 2


# -- as a process ----------------------------------------------------------------------------------------------------------


def started(house, *words, **more):
    known = {"FABRIC_ADDRESS": house.address, "FABRIC_API_KEY": house.acme, "FABRIC_CA": str(house.tls.ca)}
    return subprocess.Popen(
        [sys.executable, "-c", "from fabric.cli import main; main()", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **known}, **more,
    )  # fmt: skip


@pytest.fixture
def endless(house):
    house.port.run_jobs = False
    over = threading.Event()

    async def logs(job_id, *, offsets, follow):
        import asyncio

        start = offsets.get("1/0", 0)
        if not start:
            yield LogChunk(rank=0, attempt=1, offset=0, data=LINES[0])
        while not over.is_set():
            if house.port.away:
                raise AWAY
            await asyncio.sleep(0.05)

    house.port.logs = logs
    yield
    over.set()


@pytest.mark.parametrize(
    "words", [("logs", "-f"), ("submit", "-t", "1", "--follow"), ("run", "-t", "1")], ids=lambda each: each[0]
)
@pytest.mark.parametrize("away", [False, True], ids=["there", "away"])
def test_ctrl_c_ends_a_follow_at_once(house, endless, words, away):
    if words[0] == "logs":
        words = ("logs", house.fabric().submit(["true"], tokens=1).id, "-f")
    else:
        words = (*words, "--", "true")
    with started(house, *words) as following:
        assert following.stdout.readline() == LINES[0].decode()
        house.port.away = away
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=PATIENT_S)
    assert following.returncode == 130
    assert "Traceback" not in err
    if words[0] != "logs":
        assert "goes on" in err
        assert "error" not in err


def test_a_follow_says_on_standard_error_that_it_waits(house, endless):
    job = house.fabric().submit(["true"], tokens=1)
    with started(house, "logs", job.id, "-f") as following:
        assert following.stdout.readline() == LINES[0].decode()
        house.port.away = True
        assert "waiting" in following.stderr.readline()
        following.send_signal(signal.SIGINT)
        out, _ = following.communicate(timeout=PATIENT_S)
    assert out == ""
