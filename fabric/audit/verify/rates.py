"""Rates of language models: every version that was offered, from offers and tariffs."""

from typing import Any

_KINDS = [f"{kind}_uhs_per_mtok" for kind in ("input", "cached", "output", "reasoning")]
Offered = dict[str, list[int]]


class Rates:
    """Of each model its versions. One without rates of its own follows the tariffs, or as an adapter its parent."""

    def __init__(self) -> None:
        self.tariffs: list[dict[str, Any]] = []
        self.versions: dict[tuple[str, int], Offered] = {}
        self.newest: dict[str, int] = {}
        self.parents: dict[str, str] = {}
        self.following: dict[str, bool] = {}
        """Whether a model follows others' rates; only of those that are offered now."""
        self.types: dict[str, list[str]] = {}
        self.dated: dict[tuple[str, int], int] = {}
        """Versions that began on a date that had been announced, and when."""

    def learn(self, event: dict[str, Any], outcome: dict[str, Any], *, since_us: int | None = None) -> None:
        """Hear of an event that was accepted; of prices whose date has come, when that was."""
        said, before = event["event"], dict(self.newest)
        if said == "configure":
            self.tariffs = event["tariffs"].get("rates", [])
            for name in sorted(self.following, key=lambda name: bool(self.parents[name])):
                self._follow(name)
        elif said == "offer_model":
            spec, version = event["spec"], outcome["facts"]["rate_version"]
            name = spec["name"]
            self.parents[name], self.following[name] = spec.get("parent", ""), not event["rates"]
            self.types[name] = spec.get("accelerators") or [""]
            self._price(name, version, _numbers(event["rates"]) or self._in_force(name))
            for adapter in [each for each, parent in self.parents.items() if parent == name]:
                self._follow(adapter)
        elif said == "withdraw_model":
            self.following.pop(event["model"], None)

        if since_us is not None:
            began = {(name, version) for name, version in self.newest.items() if before.get(name) != version}
            self.dated |= dict.fromkeys(began, since_us)

    def was_over(self, model: str, version: int, at_us: int) -> bool:
        """Whether a later version had begun by then, on a date that was known."""
        return any(
            name == model and later > version and since_us <= at_us for (name, later), since_us in self.dated.items()
        )

    def offered(self, model: str, version: int) -> Offered | None:
        """What a version of a model's rates is, by type of accelerator ("" = any). None = there was no such version."""
        return self.versions.get((model, version))

    def _follow(self, name: str) -> None:
        rates = self._in_force(name) if self.following.get(name) else {}
        home = self.parents[name] or name
        whole = rates and all("" in rates or each in rates for each in self.types.get(home, [""]))
        if whole and rates != self.versions[name, self.newest[name]]:
            self._price(name, self.newest[name] + 1, rates)

    def _price(self, name: str, version: int, rates: Offered) -> None:
        self.newest[name] = version
        self.versions[name, version] = rates

    def _in_force(self, name: str) -> Offered:
        """What the tariffs say of its name, else what its parent costs now, else what they say of any."""
        parent = self.parents[name]
        if not (found := _numbers(self.tariffs, name)) and parent:
            found = self.versions.get((parent, self.newest.get(parent, 0)), {})
        return found or _numbers(self.tariffs, "")


def _numbers(rates: list[dict[str, Any]], named: str | None = None) -> Offered:
    fit = (rate for rate in rates if named is None or rate["model"] == named)
    return {rate["accelerator"]: [rate[kind] for kind in _KINDS] for rate in fit}
