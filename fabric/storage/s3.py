"""Requests to an S3 bucket, through boto3: by key, tried again while that may help, with credentials that may run out.

What is kept there, and what it takes for a value to be whole, is for those above to know: the archive, and the store of
checkpoints. Credentials that expired are fetched anew (from `refresh`, or from the machine's own chain) and the request
goes on; if they can't be, the error says so.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from fabric.errors import NotFound
from fabric.storage.keys import checked_key
from fabric.storage.s3_clients import S3Credentials, forget_credentials, opened_client
from fabric.storage.s3_errors import MAX_ATTEMPTS, is_expired, is_missing, is_passing, refused

_T = TypeVar("_T")

Sse = Literal["", "AES256", "aws:kms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in which bucket, and who writes there."""

    bucket: str
    """Must be there."""
    prefix: str = ""
    """A key below which everything is kept; "" = at the top."""
    endpoint_url: str | None = None
    """Of a store that is not Amazon's."""
    region: str | None = None
    """None = what the machine's environment says."""
    credentials: S3Credentials | None = None
    """None = each process that opens it uses its own machine's environment or role."""
    refresh: Callable[[], S3Credentials] | None = None
    """Gives credentials anew when those in use have expired; None = the machine's chain is asked again."""
    sse: Sse = ""
    """Encryption at rest by the bucket; "" = the bucket's own setting."""
    kms_key_id: str = ""
    """The key, with `sse="aws:kms"`; "" = the account's default key."""
    read_timeout_s: float = 60.0
    """How long an answer may take before the request counts as failed."""


class Bucket:
    """One place in a bucket. Pickles; nothing is opened until it is used, and each process opens it for itself.

    `keeper` is what people know it as: it is in the errors' texts and codes ("the archive failed ...", `archive_failed`).
    """

    def __init__(self, place: Place, *, keeper: str) -> None:
        self.place = place
        self.name = place.bucket
        self.prefix = f"{checked_key(place.prefix)}/" if place.prefix else ""
        self.sealing: dict[str, str] = {"ServerSideEncryption": place.sse} if place.sse else {}
        """What an upload says so that it is encrypted at rest."""
        if place.kms_key_id:
            self.sealing["SSEKMSKeyId"] = place.kms_key_id
        self._keeper = keeper
        self._opened: tuple[int, Any] | None = None
        self._looking: tuple[int, float, Any] | None = None

    def __repr__(self) -> str:
        return f"s3://{self.name}/{self.prefix}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.place, self._keeper)

    def at(self, key: str) -> dict[str, str]:
        """A key as a request names it."""
        return {"Bucket": self.name, "Key": self.prefix + checked_key(key)}

    @property
    def client(self) -> Any:
        """A client of this process: connections don't survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            place = self.place
            client = opened_client(
                endpoint_url=place.endpoint_url,
                region=place.region,
                credentials=place.credentials,
                read_timeout_s=place.read_timeout_s,
            )
            self._opened = (os.getpid(), client)
        return self._opened[1]

    def look(self, within_s: float) -> None:
        """Ask once whether it answers at all; a no is an answer.

        Raises:
            Unavailable: it doesn't, or not in that time.
        """
        if self._looking is None or self._looking[:2] != (os.getpid(), within_s):
            place = self.place
            client = opened_client(
                endpoint_url=place.endpoint_url,
                region=place.region,
                credentials=place.credentials,
                read_timeout_s=within_s,
                connect_timeout_s=within_s,
            )
            self._looking = (os.getpid(), within_s, client)
        try:
            self._looking[2].head_object(Bucket=self.name, Key=f"{self.prefix}look")
        except Exception as error:
            if is_passing(error):
                raise refused("look", error, keeper=self._keeper) from error

    def call(self, operation: str, key: str, **arguments: Any) -> Any:
        """What the bucket answers to a request about one key, tried as `retried` does."""
        at = self.at(key)
        return self.retried(lambda: getattr(self.client, operation)(**at, **arguments), key=key)

    def keys(self, prefix: str) -> list[str]:
        """All keys below `prefix/` ("" for all), in order."""
        below = self.below(prefix)
        found = self.pages("list_objects_v2", "Contents", key=prefix, Prefix=below)
        return sorted(entry["Key"].removeprefix(self.prefix) for entry in found)

    def below(self, prefix: str) -> str:
        """How the names of all keys below a key begin."""
        return self.prefix + (f"{checked_key(prefix)}/" if prefix else "")

    def pages(self, operation: str, part: str, *, key: str, of: str = "", **arguments: Any) -> list[Any]:
        """One part of every page of a listing, as one list; of each entry only what is called `of`, if that is given."""

        def read() -> list[Any]:
            pages = self.client.get_paginator(operation).paginate(Bucket=self.name, **arguments)
            return [entry[of] if of else entry for page in pages for entry in page.get(part, ())]

        return self.retried(read, key=key)

    def retried(self, once: Callable[[], _T], *, key: str) -> _T:
        """What `once` gives, after as many tries as may help; expired credentials are renewed one time.

        Raises:
            NotFound: there is nothing under that key.
            Unavailable: the bucket refuses, or stays away; the code says which.
        """
        renewed = False
        try:
            import stamina  # noqa: PLC0415  # a client that has no bucket has no need of it

            for attempt in stamina.retry_context(on=is_passing, attempts=MAX_ATTEMPTS, wait_initial=0.1, wait_max=2.0):
                with attempt:
                    try:
                        return once()
                    except Exception as error:
                        if renewed or not is_expired(error):
                            raise
                        renewed = True
                        self._renew()
                        return once()
        except Exception as error:
            if is_missing(error):
                raise NotFound(
                    f"the {self._keeper} keeps nothing under {key}", code="blob_not_found", key=key
                ) from None
            raise refused(key, error, keeper=self._keeper) from error
        raise AssertionError

    def _renew(self) -> None:
        """Credentials anew, and a client that uses them."""
        if self.place.refresh is not None:
            self.place = replace(self.place, credentials=self.place.refresh())
        forget_credentials()
        self._opened = None


def _reopened(place: Place, keeper: str) -> Bucket:
    return Bucket(place, keeper=keeper)
