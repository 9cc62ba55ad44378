"""A call whose connection broke is one that may be repeated, whatever status gRPC gives it; no mistake of ours."""

from types import SimpleNamespace

import pytest

from fabric.client.failed_calls import error_of_call
from fabric.errors import Internal, Unavailable


def failed(status, details):
    code = SimpleNamespace(name=status)
    return SimpleNamespace(code=lambda: code, details=lambda: details, trailing_metadata=lambda: ())


@pytest.mark.parametrize(
    ("status", "details"),
    [
        ("INTERNAL", "Received RST_STREAM with error code 2"),
        ("UNKNOWN", "Stream removed"),
        ("UNKNOWN", "Stream removed (Socket closed)"),
        ("INTERNAL", "GOAWAY received"),
        ("UNAVAILABLE", "Socket closed"),
        ("CANCELLED", ""),
    ],
)
def test_a_call_whose_connection_broke_may_be_repeated(status, details):
    assert isinstance(error_of_call(failed(status, details), address="localhost:7480"), Unavailable)


@pytest.mark.parametrize(
    ("status", "details"),
    [("UNKNOWN", "Exception calling application: 'x'"), ("INTERNAL", "Failed to deserialize"), ("UNIMPLEMENTED", "")],
)
def test_a_mistake_stays_one(status, details):
    assert isinstance(error_of_call(failed(status, details), address="localhost:7480"), Internal)
