"""Whose work records are of: the project and the member of the key that it was done with, as that was made."""

from typing import Any

from .report import require


class Whose:
    """A key is of one project and one member, for ever; older records name neither."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[str, str, str]] = {}
        """Of what account, project and member."""
        self.jobs: dict[tuple[str, str], str] = {}
        """With which key they were submitted."""

    def learn(self, event: dict[str, Any]) -> None:
        """An event that was accepted."""
        if event["event"] == "create_key":
            account = event["account_id"]
            project = event.get("project", "")
            whose = (account, "" if project == account else project, event.get("member", ""))
            self.keys.setdefault(event["key_id"], whose)
        elif event["event"] == "submit" and event.get("key_id"):
            self.jobs.setdefault((event["account_id"], event["job_id"]), event["key_id"])

    def post(self, seq: int, entry: dict[str, Any]) -> None:
        for record in entry["records"]:
            said = record.get("project", ""), record.get("member", "")
            account = record["account_id"]
            key_id = record.get("key_id") or self.jobs.get((account, record["job_id"]), "")
            owner, *whose = self.keys.get(key_id, ("", "", ""))
            fits = said in (("", ""), tuple(whose) if owner == account else ("", ""))
            require(fits, f"in entry {seq} record {record['cdr_id']} is of {said}, and its key {key_id!r} of {whose}")
