"""What the model's auditor knows of debts: each at the price of the time of its use, the newest of them at the price in force."""


class Debts:
    """Of an auditor: `debt`, `at_price`, `fresh`, `invoices`, `uses` and `used` are its own."""

    def at_todays(self, account):
        """The price in force, and how much is owed that was used at it, as far as no other was in force since."""
        price = self.price_of(account)
        was, amount = self.fresh.get(account, (price, 0))
        if was != price:
            self.at_price[account] += [(was, amount)] if amount else []
            amount = 0
        self.fresh[account] = price, amount
        return price, amount

    def owed(self, account):
        """All that is owed, each part at its price: the price in force is looked at first, for what is no longer used at it moves."""
        todays = self.at_todays(account)
        return [*self.at_price[account], todays]

    def owe(self, account, amount, price=None, ref=""):
        """Used on credit: at the price of its time, where that isn't the one in force."""
        if amount:
            self.debt[account] += amount
            today, fresh = self.at_todays(account)
            self.used[ref.partition("#")[0]].append((today if price is None else price, amount))
            if price in (None, today):
                self.fresh[account] = today, fresh + amount
            else:
                self.at_price[account].append((price, amount))

    def owe_less(self, account, amount, *, newest):
        self.debt[account] -= amount
        (today, fresh), steps = self.at_todays(account), self.at_price[account]
        first = min(fresh, amount) if newest else 0
        fresh, amount = fresh - first, amount - first
        while amount and steps:
            price, there = steps.pop(-1 if newest else 0)
            if there > amount:
                steps.insert(len(steps) if newest else 0, (price, there - amount))
            amount -= min(there, amount)
        self.fresh[account] = today, fresh - amount

    def take_back(self, account, amount, used):
        """Less is owed because use is taken back: at the prices of its use, the newest first; the rest as what was used last."""
        while amount and used:
            price, there = used.pop()
            part = min(there, amount)
            used += [(price, there - part)] if there > part else []
            amount -= part
            self.owe_less_at(account, part, price)
        self.owe_less(account, amount, newest=True)

    def owe_less_at(self, account, amount, price):
        today, fresh = self.at_todays(account)
        first = min(fresh, amount) if price == today else 0
        self.fresh[account], left, steps = (today, fresh - first), amount - first, self.at_price[account]
        for at in reversed(range(len(steps))):
            part = min(left, steps[at][1]) if steps[at][0] == price else 0
            steps[at], left = (steps[at][0], steps[at][1] - part), left - part
        steps[:] = [step for step in steps if step[1]]
        self.debt[account] -= amount - left
        self.owe_less(account, left, newest=True)

    def used_at(self, ref, amount):
        """At which price a job's use was that is captured: of what is due one part after the other, never more than there is of it."""
        parts = self.uses.get(ref, [])
        while parts and parts[0][1] < amount:
            parts.pop(0)
        return parts.pop(0)[0] if parts else None

    def unpaid(self, account):
        """Tokens in invoices: as much of each as of its price isn't paid."""
        return sum(-(-amount * (price - paid) // price) for amount, price, paid, _ in self.invoices[account])

    def due(self, account):
        """Money in invoices."""
        return sum(price - paid for _, price, paid, _ in self.invoices[account])

    def owes(self, account):
        return self.debt[account] + self.unpaid(account)
