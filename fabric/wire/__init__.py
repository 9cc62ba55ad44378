"""What crosses the network: the gRPC messages, errors and API keys. Knows no transport and no gate.

`fabric_pb2` is generated from `fabric.proto` by `make proto`; `service` lists its calls, so that neither
the door nor the client repeats them.
"""

from fabric.wire.failures import ERROR_METADATA, decode_error, encode_error
from fabric.wire.keys import ApiKey, format_key, hash_secret, make_secret, parse_key
from fabric.wire.service import INLINE_BYTES_MAX

__all__ = [
    "ERROR_METADATA",
    "INLINE_BYTES_MAX",
    "ApiKey",
    "decode_error",
    "encode_error",
    "format_key",
    "hash_secret",
    "make_secret",
    "parse_key",
]
