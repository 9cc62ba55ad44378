"""What the model knows of prices, from what it said itself: which were, are and will be in force."""


class PriceBook:
    """Tariffs and catalogues, as (since when, whether that had been announced, what): what was said last counts, of what has not
    begun yet.
    """

    def __init__(self, tariffs, catalogue):
        self.tariffs, self.catalogues = [(0, False, tariffs)], [(0, False, catalogue)]

    @staticmethod
    def say(steps, value, *, now, since):
        """From then on; `since` is `now` where nobody said a date."""
        steps[:] = [step for step in steps if step[0] <= now or step[0] < since]
        steps.append((since, since > now, value))

    @staticmethod
    def at(steps, at):
        return [value for since, _, value in steps if since <= at][-1]

    def of_lease(self, started):
        """What a lease pays by: what is in force as it starts, and from its date on what had been announced."""
        first = self.at(self.tariffs, started)

        def tariffs_at(at):
            dated = [value for since, is_dated, value in self.tariffs if is_dated and started < since <= at]
            return dated[-1] if dated else first

        return tariffs_at

    def turns(self):
        """Moments at which something may turn."""
        return {since for since, _, _ in (*self.tariffs, *self.catalogues)}

    def known(self, now, until):
        """The tariffs in force, and those that are known to begin before a moment."""
        return [self.at(self.tariffs, now), *(value for since, _, value in self.tariffs if now < since < until)]

    def price(self, plan, at):
        """Of a token that was used at a moment."""
        return self.at(self.catalogues, at).plan(plan).price_microcny_per_ct

    def together(self, plan, parts):
        """Parts of metered time (when each began, how much) as they are booked: those that follow each other at one price at once."""
        found = []
        for at, amount in parts:
            price = self.price(plan, at)
            before = found.pop()[1] if found and found[-1][0] == price else 0
            found.append((price, before + amount))
        return found
