"""What the model knows of work that runs, from what it did itself: what was metered, what was lost, and which attempt is next."""

from fractions import Fraction
from math import floor

from fabric.units import PPM

S = 1_000_000
HOUR = 3_600 * S


class Meter:
    """What one lease must be charged, in exact fractions, whatever the gate thinks."""

    def __init__(self, *, devices, weight_at, tariffs_at, started, turns=set):
        self.devices, self.weight_at, self.tariffs_at, self.started = devices, weight_at, tariffs_at, started
        self.turns, self.parts = turns, []
        self.done, self.span, self.last = 0, Fraction(0), None
        self.seq, self.metered, self.rated = 0, 0, 0
        self.absorbed = self.refunded = self.durable = self.estimated = 0
        self.durable_at = 0
        self.most = None
        """How much of the time since its last save is given back at most."""

    @property
    def points(self):
        return self.tariffs_at(self.started + self.metered).curve.points

    @property
    def price(self):
        """What it weighs and how it burns from where it is metered, and by which version."""
        at = self.started + self.metered
        return Fraction(self.weight_at(at), PPM), self.points, self.tariffs_at(at).version

    def pieces(self, window):
        """Time cut at each moment at which it may weigh or cost something else: every whole hour is one."""
        while window:
            at = self.started + self.metered
            piece = min(window, HOUR - at % HOUR, *(turn - at for turn in self.turns() if turn > at))
            yield piece
            window -= piece

    def f(self, utilisation):
        for (left, low), (right, high) in zip(self.points, self.points[1:], strict=False):
            if utilisation <= Fraction(right, PPM):
                slope = Fraction(high - low, right - left)
                return Fraction(low, PPM) + slope * (utilisation - Fraction(left, PPM))
        return Fraction(self.points[-1][1], PPM)

    def sample(self, sample, until):
        """What is due for one sample, cut off where the gate's clock has not been yet."""
        if sample.seq <= self.seq:
            return 0
        self.seq = sample.seq
        window = min(max(sample.window_us, 0), max(until - self.started - self.metered, 0))
        if not window:
            return 0
        if sample.estimated:
            return self.gap(window)
        busy = min(max(sample.busy_us, 0), self.devices * sample.window_us) * window // sample.window_us
        due = done = 0
        for piece in self.pieces(window):
            part = busy * (done + piece) // window - busy * done // window
            done += piece
            due += self._add(piece * self.devices * self.f(Fraction(part, self.devices * piece)), piece)
        return due

    def gap(self, window):
        self.estimated += window
        return sum(self._add(Fraction(piece * self.devices), piece) for piece in self.pieces(window))

    def _add(self, device_us, piece):
        """Each span of one price is rounded by itself."""
        if self.price != self.last:
            self.done, self.span, self.last = self.done + round(self.span), Fraction(0), self.price
        self.span += device_us * self.last[0]
        due, self.rated = self.done + round(self.span) - self.rated, self.done + round(self.span)
        self.parts.append((self.started + self.metered, due))
        self.metered += piece
        return due

    def taken(self):
        """What was due since this was asked last, by parts: when each began, and how much."""
        parts, self.parts = self.parts, []
        return parts

    def lost(self):
        """What is given back of what was charged since the last save."""
        lost, since = max(self.charged - self.durable, 0), self.metered - self.durable_at
        return lost if since <= self.most else floor(Fraction(lost * self.most, since))

    @property
    def charged(self):
        return self.rated - self.absorbed - self.refunded


class Outages:
    """How often lost nodes took an account's work, what it got back for that, and what it has paid since."""

    MOST, TOGETHER_US = 5, 600_000_000

    def __init__(self):
        self.begun, self.gave, self.got = [], 0, 0

    def believed(self, at):
        return len(self.begun) < self.MOST or at < self.begun[-1] + self.TOGETHER_US

    def took(self, at, given_back):
        self.begun += [at] if not self.begun or at >= self.begun[-1] + self.TOGETHER_US else []
        self.gave += given_back

    def paid(self, amount):
        if self.begun:
            self.got += amount
            if self.got > self.gave:
                self.__init__()


class Tries:
    """How often in a row one job's attempts came to nothing that its owner didn't ask for, and what it got back for them."""

    MOST = 5
    LONG_US = 600 * S
    WAITS_S = (0, 2, 8, 32)

    def __init__(self):
        self.row, self.given_back, self.step = 0, 0, 0
        self.unstarted, self.earliest, self.holds = 0, 0, 0

    OURS = (None, "evicted", "resized", "drained", "fabric_down")

    def ended(self, outcome, *, at, asked_for, started_at, saved_step):
        """`started_at` is None for an attempt that never did."""
        if outcome not in ("lost", "interrupted") or asked_for not in self.OURS:
            return
        if started_at is None and asked_for is not None:
            return
        if started_at is None and outcome == "lost":
            self.unstarted += 1
        else:
            if not self.row or (started_at is not None and at - started_at >= self.LONG_US):
                self.row, self.given_back, self.step = 0, 0, saved_step
            self.row += 1
        if asked_for is None:
            self.earliest = at + (*self.WAITS_S, *[120] * 99)[self.row + self.unstarted - 1] * S

    def queued(self, holds):
        """It holds tokens anew where it was parked, or its owner said that it is to go on."""
        if holds != self.holds:
            self.holds, self.unstarted, self.earliest = holds, 0, 0

    def saved(self, step, durable):
        if self.row and step >= self.step and durable > self.given_back:
            self.row = self.given_back = 0

    def believed(self):
        return self.row <= self.MOST
