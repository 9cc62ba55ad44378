"""A process with torch imported, which forks gangs: `python -m tests.training.gang.nest`.

Reads orders on stdin, one pickle a line in hexadecimal, and forks a process for each; says on stdout, as JSON lines,
which pid each became and how it ended. A stand-in for the product's zygote.
"""

import json
import os
import pickle
import select
import signal
import sys
import traceback

import torch
import torch._dynamo  # an optimizer imports it at its first step: seconds, once, here
import torch.distributed.fsdp

from tests.training.gang import exports, probes, scripts, work


def main():
    torch.set_num_threads(1)
    alive, open_, rest = set(), True, b""
    while open_ or alive:
        if open_ and select.select([0], [], [], 0.005)[0]:
            chunk = os.read(0, 1 << 20)
            open_ = bool(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            alive |= {fork(*pickle.loads(bytes.fromhex(line.decode()))) for line in whole}
        while alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            alive.discard(pid)
            say(pid=pid, code=os.waitstatus_to_exitcode(status))


def fork(doing, rank, *arguments):
    pid = os.fork()
    if pid:
        say(pid=pid, rank=rank)
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        found = next(module for module in (work, scripts, probes, exports) if hasattr(module, doing))
        getattr(found, doing)(rank, *arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:  # noqa: BLE001  # whatever it is, the fork must not become a second nest
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def say(**said):
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
