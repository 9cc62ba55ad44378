"""A job's log is told once and in full, wherever it lies."""

from types import SimpleNamespace

from fabric.cluster.logs import JobLogs
from fabric.storage.archive import DirectoryArchive

KEY = "jobs/acme/job-1/logs/000001/000000"


class Agents:
    """The log on a machine, and what happens to it while it is read."""

    def __init__(self, log=b"", *, meanwhile=lambda: None):
        self.log, self.meanwhile = log, meanwhile

    async def read_log(self, address, path, *, offset, limit):
        self.meanwhile()
        return self.log[offset : offset + limit]


def attempt(account="acme", *, epoch=1):
    return SimpleNamespace(
        lease=SimpleNamespace(account_id=account, epoch=epoch),
        ranks=lambda: [(SimpleNamespace(rank=0, log_file="log"), "10.0.0.1")],
    )


async def told(logs, *, account="acme", offsets=None):
    chunks = [chunk async for chunk in logs.read("job-1", account_id=account, offsets=offsets or {})]
    return [(chunk.offset, chunk.data) for chunk in chunks]


async def test_a_log_that_goes_into_the_archive_while_it_is_looked_for_is_told(tmp_path):
    archive = DirectoryArchive(tmp_path)
    agents = Agents(meanwhile=lambda: archive.put(KEY, b"the end\n"))
    logs = JobLogs(archive=archive, agents=agents, attempts_of=lambda _: [attempt()])
    assert await told(logs) == [(0, b"the end\n")]


async def test_what_was_read_on_the_machine_is_not_told_again_from_the_archive(tmp_path):
    archive = DirectoryArchive(tmp_path)
    archive.put(KEY, b"first second")
    logs = JobLogs(archive=archive, agents=Agents(b"first "), attempts_of=lambda _: [attempt()])
    assert await told(logs) == [(0, b"first "), (6, b"second")]
    assert await told(logs, offsets={"1/0": 12}) == []


async def test_nobody_reads_the_log_of_another_accounts_job(tmp_path):
    logs = JobLogs(archive=DirectoryArchive(tmp_path), agents=Agents(b"secret"), attempts_of=lambda _: [attempt()])
    assert await told(logs, account="globex") == []


async def test_what_a_job_that_was_resumed_wrote_before_is_told_first(tmp_path):
    archive = DirectoryArchive(tmp_path)
    for epoch in (1, 2):
        archive.put(KEY.replace("000001", f"{epoch:06d}"), b"before\n")
    agents = Agents(b"now\n")
    logs = JobLogs(archive=archive, agents=agents, attempts_of=lambda _: [attempt(epoch=4), attempt(epoch=3)])
    chunks = [chunk async for chunk in logs.read("job-1", account_id="acme", offsets={})]
    assert [(chunk.attempt, chunk.data) for chunk in chunks] == [
        (1, b"before\n"),
        (2, b"before\n"),
        (3, b"now\n"),
        (4, b"now\n"),
    ]
    offsets = {f"{chunk.attempt}/0": len(chunk.data) for chunk in chunks}
    assert await told(logs, offsets=offsets) == []


async def test_of_a_log_in_the_archive_only_what_is_new_is_read(tmp_path):
    """One that follows at its own pace made us read all of it again for every page."""
    archive, read = DirectoryArchive(tmp_path), []
    archive.put(KEY, bytes(range(256)) * 4_096)
    plain = archive.get_range
    archive.get_range = lambda key, offset, size: read.append((offset, data := plain(key, offset, size))) or data
    archive.get = None
    logs = JobLogs(archive=archive, agents=Agents(), attempts_of=lambda _: [])
    had = 0
    while True:
        chunks = logs.read("job-1", account_id="acme", offsets={"1/0": had} if had else {})
        first = await anext(chunks, None)
        await chunks.aclose()
        if first is None:
            break
        assert first.offset == had
        had += len(first.data)
    assert had == 256 * 4_096
    assert sum(len(data) for _, data in read) == had
    assert max(len(data) for _, data in read) <= 256 * 1_024
