"""How a call fails, as gRPC's own library says it."""

import enum
from collections.abc import Sequence


class Status(enum.Enum):
    """gRPC's statuses."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


Metadata = Sequence[tuple[str, str | bytes]]


class CallFailed(Exception):
    """A call that has no answer."""

    def __init__(self, status: Status, details: str, metadata: Metadata = ()) -> None:
        super().__init__(f"{status.name}: {details}")
        self._status = status
        self._details = details
        self._metadata = tuple(metadata)

    def code(self) -> Status:
        return self._status

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Metadata:
        return self._metadata
