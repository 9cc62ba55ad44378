"""gRPC's own log, in processes that open doors. Import it before whatever imports gRPC, which reads this as it is imported.

It would write a line for each handshake that fails, which strangers can have thousands of in a second, into a log that is on
the journal's disk.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
