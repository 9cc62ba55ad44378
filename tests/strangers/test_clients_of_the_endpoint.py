"""Clients that others wrote, pinned and fetched when the test runs, against the endpoint with a real engine behind it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.gateway.test_live_gateway import front

__all__ = ["front"]
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PYTHON = (
    "openai==3.3.0", "anthropic==2.11.0", "litellm==1.110.1", "langchain-openai==1.7.4", "pydantic-ai-slim[openai]==2.38.0",
    "instructor==1.17.0",
)  # fmt: skip
NPM = ("openai@6.49.0", "@anthropic-ai/sdk@1.14.0")
HERE = Path(__file__).parent / "clients"


def fetched(command, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, **more)
    if done.returncode:
        pytest.skip(f"can't be fetched: {done.stderr[-400:]}")


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """An interpreter with the clients, and nothing of ours."""
    folder = tmp_path_factory.mktemp("clients") / "venv"
    uv = Path(sys.executable).with_name("uv")
    fetched([uv, "venv", "-q", "--python", sys.executable, folder])
    fetched([uv, "pip", "install", "-q", "--python", folder / "bin" / "python", *PYTHON])
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """A folder with the clients of npm."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("npm")
    fetched(["npm", "init", "-y"], cwd=folder)
    fetched(["npm", "install", "--no-audit", "--no-fund", *NPM], cwd=folder)
    shutil.copy(HERE / "npm_clients.mjs", folder)
    return folder


def said_by(command, front, **more):
    environment = {
        "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"), "ENDPOINT": front.url, "API_KEY": front.key,
        "MODEL": "byte-lm", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment, **more)
    assert done.returncode == 0, done.stderr[-3_000:]
    return json.loads(done.stdout.splitlines()[-1])


EXPECTED = {
    "openai": {"whole": 5, "response": 5, "tools": "tools_not_offered", "long": "context_length_exceeded", "models": ["byte-lm"]},
    "anthropic": {"whole": 5, "stream": 5},
    "litellm": {"whole": 5, "stream": 5, "long": "context_length_exceeded"},
    "langchain": {"whole": 5, "stream": 5},
    "pydantic_ai": {"whole": 5, "stream": True},
    "instructor": {"schema": ["bool", "Place", "bool"], "tools": True},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _calls_no_tools(front):
    facts = front.directory.models["byte-lm"]
    front.directory.models["byte-lm"] = type(facts)(name="byte-lm", max_context=512, rates=facts.rates, state="ready")
    front.directory.change()


@pytest.mark.parametrize("client", EXPECTED)
def test_a_client_of_python_reads_answers_streams_and_refusals(front, python, client):
    said = said_by([python, HERE / "python_clients.py", client], front)
    assert {name: said.get(name) for name in EXPECTED[client]} == EXPECTED[client], said
    if client == "openai":
        assert said["cost"] > 0
        assert int(said["charge"]) > 0
        assert said["id"].startswith("c")
        assert said["last"] in {"response.completed", "response.incomplete"}


def test_the_clients_of_npm_read_answers_streams_and_refusals(front, node):
    said = said_by(["node", "npm_clients.mjs"], front, cwd=node)
    assert (said["whole"], said["stream"], said["missing"]) == (5, 5, "model_not_found"), said
    assert said["cost"] > 0
    assert int(said["charge"]) > 0
    assert said["id"].startswith("c")
