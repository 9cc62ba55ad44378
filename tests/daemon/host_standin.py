"""Stands in for the serving host: says that it is up, starts a gateway that outlives it, and ends as it is told to."""

import signal
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    place = Path(sys.argv[sys.argv.index("--state-dir") + 1])
    role = sys.argv[-1] if sys.argv[-1] == "gateway" else "host"
    if role == "host" and "stubborn" not in place.name:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    elif role == "host":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if role == "host":
        subprocess.Popen([sys.executable, "-m", "tests.daemon.host_standin", "--state-dir", str(place), "gateway"])
    with (place / "starts").open("a") as out:
        out.write(f"{role} {' '.join(sys.argv[1:])}\n")
    while True:
        time.sleep(0.05)
