"""A door in a process of its own, whose memory can be looked at: says where it is, and ends when its input does."""

import json
import sys
import tempfile
from pathlib import Path

from fabric.api import grpc_server
from fabric.api.limits import Limits
from tests.doors.conftest import House

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        grpc_server.MESSAGE_S = 3.0
        house = House(Path(folder), sandbox_payments=True, limits=Limits(**json.loads(sys.argv[1])))
        said = {"address": house.address, "ca": str(house.tls.ca), "acme": house.acme, "globex": house.globex}
        print(json.dumps(said), flush=True)
        sys.stdin.read()
        house.close()
