"""Witnesses: who must have cosigned a checkpoint (C2SP tlog-policy, tlog-cosignature), so that nobody is shown another history."""

from .cosignatures import cosigned_at, witness_key
from .report import Wrong, require


class Policy:
    """Logs that are believed, witnesses by name, groups of them, and the quorum that a checkpoint needs."""

    def __init__(self, text: str) -> None:
        """Read a policy file.

        Raises:
            Wrong: it is none, with the line.
        """
        self.logs: set[str] = set()
        self.witnesses: dict[str, str] = {}
        self.groups: dict[str, tuple[int, list[str]]] = {"none": (0, [])}
        self.quorum, self.members = "", set[str]()
        for number, line in enumerate(text.split("\n"), 1):
            words = line.replace("\t", " ").split()
            if words and not words[0].startswith("#"):
                try:
                    self._read(words)
                except (ValueError, IndexError) as error:
                    raise Wrong(f"line {number} of the policy can't be read: {error}", "no_policy") from None
        require(self.quorum, "the policy has no quorum line", "no_policy")

    def cosigned(self, note: str) -> list[str]:
        """The names of witnesses that have cosigned a checkpoint.

        Raises:
            Wrong: there is a cosignature of a witness's key that is wrong.
        """
        return [name for name, key in self.witnesses.items() if cosigned_at(note, key) is not None]

    def met(self, cosigned: list[str], name: str = "") -> bool:
        """Whether these witnesses are the quorum, or a group."""
        name = name or self.quorum
        if name in self.witnesses:
            return name in cosigned
        least, members = self.groups[name]
        return sum(self.met(cosigned, each) for each in members) >= least

    def _read(self, words: list[str]) -> None:
        said, *rest = words
        if said == "log":
            self._once(rest[0], self.logs)
            self.logs.add(rest[0])
        elif said == "witness":
            name, key = rest[:2]
            self._new(name)
            witness_key(key)
            self._once(key, set(self.witnesses.values()))
            self.witnesses[name] = key
        elif said == "group":
            name, least, *members = rest
            self._new(name)
            taken = [each for each in members if each == "none" or each in self.members or not self._known(each)]
            self._fits(
                not taken and len(set(members)) == len(members), f"{members} are not defined, or in a group already"
            )
            count = {"any": 1, "all": len(members)}.get(least) or int(least)
            self._fits(1 <= count <= len(members), f"{least} of {len(members)}")
            self.members |= set(members)
            self.groups[name] = (count, members)
        elif said == "quorum":
            (name,) = rest
            self._fits(not self.quorum and self._known(name), f"{name} is not defined, or is a second quorum")
            self.quorum = name
        else:
            raise ValueError(f"{said} is no word of a policy")

    def _known(self, name: str) -> bool:
        return name in self.witnesses or name in self.groups

    def _new(self, name: str) -> None:
        self._fits(not self._known(name), f"{name} is defined already")

    def _once(self, key: str, others: set[str]) -> None:
        self._fits(
            key.split("+", 2)[2] not in {each.split("+", 2)[2] for each in others}, "this key stands there already"
        )

    def _fits(self, holds: object, otherwise: str) -> None:
        if not holds:
            raise ValueError(otherwise)
