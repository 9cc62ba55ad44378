"""The transport logs nothing of a connection that fails: the error says it. gRPC reads this as it is imported."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
