"""What the doctor finds nothing behind."""

import socket

import pytest


@pytest.fixture
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]  # bound and not listening: refused for sure
