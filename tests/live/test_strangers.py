"""Who has no business with the gate gets nothing of it: a process without Ray's token, and a job inside the cluster."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import psutil

from fabric.daemon.cleanup import recorded
from fabric.units import UHS_PER_CT
from fabric.worker.lease_ray_settings import LOOPBACK
from tests.live.test_house import gate_pid, settled

OUTSIDER = """
import json, sys
import ray
from fabric.gate.questions import BalanceOf
found = {}
try:
    ray.init(address=sys.argv[1], namespace="fabric", log_to_driver=False, logging_level="error", configure_logging=False)
    gate = ray.get_actor("gate")
    for name, given in (("ask", (BalanceOf(account_id=sys.argv[2]),)), ("call", (b"", "ask", BalanceOf(account_id=sys.argv[2])))):
        try:
            found[name] = repr(ray.get(getattr(gate, name).remote(*given), timeout=20))
        except BaseException as error:
            found[name] = "refused: " + type(error).__name__
    ray.kill(gate)
    found["kill"] = "done"
except BaseException as error:
    found["join"] = "refused: " + type(error).__name__
print(json.dumps(found))
"""


def outside():
    """The variables of a process that somebody else on the machine starts."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def asked(url, **options):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **options), timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_process_without_rays_token_cannot_join_the_cluster(acme, running, tmp_path):
    """With a token of its own, or with none. Where Ray asks again and again, in vain, it is given up for it."""
    environment = {**outside(), "HOME": str(tmp_path), LOOPBACK: "0"}
    modes = {"token": {"RAY_AUTH_TOKEN": "0" * 64}, "disabled": {}}
    outsiders = {
        mode: subprocess.Popen(
            [sys.executable, "-c", OUTSIDER, running.ray_address, acme.balance().account_id],
            env={**environment, "RAY_AUTH_MODE": mode, **more}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for mode, more in modes.items()
    }  # fmt: skip
    found = {}
    for mode, outsider in outsiders.items():
        try:
            lines = outsider.communicate(timeout=90)[0].splitlines()
        except subprocess.TimeoutExpired:
            outsider.kill()
            lines = outsider.communicate()[0].splitlines()
        found[mode] = json.loads(lines[-1]) if lines else {}
    assert not [said for each in found.values() for said in each.values() if not said.startswith("refused")], found


def test_the_dashboard_and_its_job_api_ask_for_the_token(running):
    body = json.dumps({"entrypoint": "true"}).encode()
    assert asked(f"{running.dashboard}/api/jobs/") == 401
    assert asked(f"{running.dashboard}/api/jobs/", data=body, headers={"content-type": "application/json"}) == 401
    assert asked(f"{running.dashboard}/nodes?view=summary") == 401
    token = Path(running.ray_token).read_text()
    assert asked(f"{running.dashboard}/api/jobs/", headers={"authorization": f"Bearer {token}"}) == 200


def test_nothing_of_ray_listens_beyond_this_machine(running):
    """Its metrics ask for no token."""
    house = psutil.Process(running.pid)
    open_to = {}
    for process in (house, *house.children(recursive=True)):
        with suppress(psutil.Error):
            found = [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
            open_to |= {(each.laddr.ip, each.laddr.port): process.name() for each in found}
    assert {name for name in open_to.values() if name.startswith(("raylet", "gcs_server", "ray::"))}
    beyond = {at: name for at, name in open_to.items() if not ip_address(at[0].removeprefix("::ffff:")).is_loopback}
    assert beyond == {}


def test_the_token_is_readable_by_its_owner_alone(running):
    token = Path(running.ray_token)
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) >= 64


def test_nobody_else_on_the_machine_can_enter_what_the_cluster_keeps(running):
    """Ray makes its folder, and the sockets and logs in it, anybody's."""
    folder = recorded(Path(running.state_dir))
    assert list(folder.glob("*/session_*/sockets/raylet*"))
    assert folder.stat().st_mode & 0o077 == 0


def test_a_job_in_the_cluster_is_refused_by_the_gate_and_the_agents(acme, tmp_path):
    account = acme.balance().account_id
    trace = tmp_path / "ran-in-the-gate"

    def attack(account, trace):
        import os

        import ray
        from ray.util import list_named_actors

        from fabric.gate.events import Tick
        from fabric.gate.questions import BalanceOf

        class Gadget:
            def __reduce__(self):
                return os.system, (f"touch {trace}",)

        found = {}

        def attempt(name, call):
            try:
                found[name] = repr(ray.get(call(), timeout=15))
            except BaseException as error:  # noqa: BLE001
                found[name] = f"refused: {type(error).__name__}"

        question = BalanceOf(account_id=account)
        for entry in list_named_actors(all_namespaces=True):
            if not entry["name"].startswith(("gate", "agent-")):
                continue
            actor, who = ray.get_actor(entry["name"], namespace=entry["namespace"]), entry["name"]
            for method, given in (
                ("ask", (question,)),
                ("decide", ([Tick()],)),
                ("_submit", ([Tick()],)),
                ("samples", ({},)),
                ("detach", ("lease",)),
                ("call", (b"", "ask", question)),
                ("call", (b"x" * 32, "samples", {})),
                ("call", (Gadget(), "ask", question)),
                ("__ray_call__", (lambda self: repr(vars(self)),)),
                ("__ray_call__", (Gadget(),)),
            ):
                attempt(f"{who}.{method}", lambda a=actor, m=method, g=given: getattr(a, m).remote(*g))
        return found

    found = acme.submit(attack, account, str(trace), tokens="0.2", accelerators="H100:1").result(timeout=180)
    assert any(name.startswith("gate.") for name in found)
    assert any(name.startswith("agent-") for name in found)
    assert {name: said for name, said in found.items() if not said.startswith("refused")} == {}
    assert not trace.exists()


def test_a_job_that_kills_the_gate_finds_it_started_again(acme, running):
    def kill():
        import ray

        ray.kill(ray.get_actor("gate", namespace="fabric"), no_restart=True)
        return "killed"

    before = gate_pid(running)
    job = acme.submit(kill, tokens="0.1", accelerators="H100:1")
    deadline = time.monotonic() + 120
    while gate_pid(running, must=False) in (None, before):
        assert time.monotonic() < deadline, "no other gate was started"
        time.sleep(0.1)
    assert job.result(timeout=120) == "killed"
    cost = settled(job)
    assert acme.balance().free_uhs == 10 * UHS_PER_CT - cost.burned_uhs
    assert acme.submit(pow, 2, 5, tokens="0.1", accelerators="H100:1").result(timeout=90) == 32
