"""Whose work records are of: the project and the member of the key that it was done with, as that was made, and its tags."""

from typing import Any

from .report import require


class Whose:
    """A key is of one project and one member, for ever; older records name neither."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[str, str, str]] = {}
        """Of what account, project and member."""
        self.jobs: dict[tuple[str, str], tuple[str, list[str]]] = {}
        """With which key and which tags of their own they were submitted."""
        self.tags: dict[tuple[str, str], list[str]] = {}
        """Of projects by the account that pays, and of keys by "" and their id."""

    def learn(self, event: dict[str, Any]) -> None:
        """An event that was accepted."""
        if event["event"] == "create_key":
            account = event["account_id"]
            project = event.get("project", "")
            whose = (account, "" if project == account else project, event.get("member", ""))
            self.keys.setdefault(event["key_id"], whose)
            self.tags.setdefault(("", event["key_id"]), event.get("tags", []))
        elif event["event"] == "create_project":
            self.tags.setdefault((event["wallet"], event["project"]), event.get("tags", []))
        elif event["event"] == "submit":
            own = event.get("key_id") or "", event["spec"].get("tags", [])
            self.jobs.setdefault((event["account_id"], event["job_id"]), own)

    def post(self, seq: int, entry: dict[str, Any]) -> None:
        for record in entry["records"]:
            said = record.get("project", ""), record.get("member", "")
            account = record["account_id"]
            submitted, own = self.jobs.get((account, record["job_id"]), ("", []))
            key_id = record.get("key_id") or submitted
            owner, *whose = self.keys.get(key_id, ("", "", ""))
            fits = said in (("", ""), tuple(whose) if owner == account else ("", ""))
            require(fits, f"in entry {seq} record {record['cdr_id']} is of {said}, and its key {key_id!r} of {whose}")
            if not record.get("model") and record.get("tags"):
                project = self.tags.get((account, whose[0]), []) if owner == account else []
                tags = _nearest(project, self.tags.get(("", key_id), []) if owner == account else [], own)
                fits = record["tags"] == tags
                require(fits, f"in entry {seq} record {record['cdr_id']} has the tags {record['tags']}, and not {tags}")


def _nearest(*sets: list[str]) -> list[str]:
    """Of several tags of one name those of the last set that has any."""
    found: list[str] = []
    for at, tags in enumerate(sets):
        nearer = {tag.partition("=")[0] for later in sets[at + 1 :] for tag in later}
        found += [tag for tag in dict.fromkeys(tags) if tag.partition("=")[0] not in nearer]
    return found
