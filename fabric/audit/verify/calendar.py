"""Which prices are in force: what is announced waits for its date, and what is said without one is in force at once."""

from typing import Any

_SETS = ("tariffs", "catalogue")
_BY_HAND = 2  # since these rules what is said of policy by hand says nothing of prices


class Calendar:
    """Of what `configure` says, each of its two sets of prices has a date of its own, and what was said last counts."""

    def __init__(self) -> None:
        self.rules = 0
        self.now: dict[str, Any] = {}
        self.coming: list[tuple[int, str, Any]] = []  # from when on, which set, and what it says

    def hear(self, event: dict[str, Any], at_us: int) -> dict[str, Any]:
        """An event that was accepted, with the prices that are in force from now on in place of those that it says."""
        if event["event"] == "adopt_rules":
            self.rules = event["rules"]
        if event["event"] != "configure":
            return event
        for name in _SETS if not (event.get("by_hand") and self.now and self.rules >= _BY_HAND) else ():
            said = event[name]
            since_us = said.get("effective_from_us", 0)
            self.coming = [each for each in self.coming if each[1] != name or each[0] < since_us]
            if since_us > at_us:
                self.coming = sorted([*self.coming, (since_us, name, said)], key=lambda each: each[0])
            else:
                self.now[name] = said
        return {**event, **self.now}

    def due(self, at_us: int) -> list[tuple[int, dict[str, Any]]]:
        """What has begun by a moment: each time when that was, and what is in force since, as if it had been said then."""
        found = []
        while self.coming and self.coming[0][0] <= at_us:
            since_us = self.coming[0][0]
            self.now |= {name: said for begins_us, name, said in self.coming if begins_us == since_us}
            self.coming = [each for each in self.coming if each[0] > since_us]
            found.append((since_us, {"event": "configure", **self.now}))
        return found
