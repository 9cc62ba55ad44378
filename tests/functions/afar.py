"""A job's far side without a cluster: what a driver packs is run by the runner's own code, in another process.

A server forks a process for each call, which knows nothing of the driver's folder, path or modules.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import msgspec

from fabric.errors import JobFailed
from fabric.results import read_parcel
from fabric.sdk.functions import pack_call
from fabric.sdk.packing import pack_files
from fabric.storage.archive import DirectoryArchive
from fabric.storage.results import read_result
from fabric.worker.payload import Payload, inlined

SOCKET = "AFAR_SOCKET"


def call(function, *args, working_dir=None, kwargs=None):
    """What the function returns there. Raises `JobFailed` as `Job.result()` does."""
    job = end = submitted(function, *args, working_dir=working_dir, kwargs=kwargs)
    end = job["end"]
    parcel = (
        read_parcel(read_result(DirectoryArchive(job["archive"]), end["result_ref"])) if end["result_ref"] else None
    )
    if end["outcome"] != "succeeded":
        failure = JobFailed(end["error"])
        if parcel is not None:
            failure.__cause__ = parcel.value() if parcel.is_data else parcel.unpickled()
        raise failure
    return parcel.value() if parcel.is_data else parcel.unpickled()


def submitted(function, *args, working_dir=None, kwargs=None):
    """Where the archive is, how it ended and what it printed."""
    folder = Path(tempfile.mkdtemp(prefix="afar-"))
    sent = pack_files((), working_dir=working_dir) if working_dir is not None else None
    packed = pack_call(function, args, kwargs or {}, working_dir=working_dir, sent=sent)
    archive = DirectoryArchive(folder / "archive")
    if packed.files is not None:
        archive.put("files", packed.files)
    payload = Payload(
        inline=inlined(packed.pickled),
        working_dir_blob="files" if packed.files is not None else "",
        python_path=packed.python_path,
    )
    (folder / "payload").write_bytes(msgspec.json.encode(payload))
    with closing(socket.socket(socket.AF_UNIX)) as asked:
        asked.connect(os.environ[SOCKET])
        asked.sendall(f"{folder}\n".encode())
        assert asked.recv(1) == b".", "the far side is gone"
    end = json.loads((folder / "end").read_text())
    return {"archive": folder / "archive", "end": end, "log": (folder / "job" / "log").read_text(errors="replace")}


def served(path):
    """A far side on a socket."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.functions.afar", path], cwd="/", env=environ, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    return process


def _serve(path):
    with socket.socket(socket.AF_UNIX) as listener:
        for name in ("fabric.worker.execution", "tests.worker.leases"):
            __import__(name)
        listener.bind(path)
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            asked, _ = listener.accept()
            if os.fork() == 0:
                with asked, asked.makefile() as words:
                    _run(Path(words.readline().strip()))
                    asked.sendall(b".")
                os._exit(0)
            asked.close()


def _run(folder):
    from fabric import context
    from fabric.cluster.validation import end_of
    from fabric.worker.execution import Stage, perform
    from tests.worker.leases import lease_of

    lease = lease_of(payload=(folder / "payload").read_text())
    stage = Stage(
        lease=lease, folder=folder / "job", log_file=folder / "job" / "log", archive=DirectoryArchive(folder / "archive"),
        context=context.Context(context.Place(job_id="job-1")), master=("127.0.0.1", 1),
    )  # fmt: skip
    end = end_of(perform(stage), lease=lease)
    (folder / "end").write_bytes(msgspec.json.encode(end))


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _serve(sys.argv[1])
