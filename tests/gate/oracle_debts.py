"""What the model's auditor knows of debts: each at the price of the time of its use, the newest of them at the price in force."""


class Debts:
    """Of an auditor: `debt`, `at_price`, `fresh`, `invoices` and `uses` are its own."""

    def at_todays(self, account):
        """The price in force, and how much is owed that was used at it, as far as no other was in force since."""
        price = self.price_of(account)
        was, amount = self.fresh.get(account, (price, 0))
        if was != price:
            self.at_price[account] += [(was, amount)] if amount else []
            amount = 0
        self.fresh[account] = price, amount
        return price, amount

    def owe(self, account, amount, price=None):
        """Used on credit: at the price of its time, where that isn't the one in force."""
        if amount:
            self.debt[account] += amount
            today, fresh = self.at_todays(account)
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
