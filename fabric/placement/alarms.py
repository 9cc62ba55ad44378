"""When each of many is next due, so that nothing is spent on those that aren't."""

import heapq


class Alarms:
    """One time by name; setting it anew takes the place of the one before."""

    __slots__ = ("_heap", "times")

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self.times: dict[str, int] = {}

    def set(self, name: str, at_us: int) -> None:
        """It is due then, and at no other time."""
        if self.times.get(name) != at_us:
            self.times[name] = at_us
            heapq.heappush(self._heap, (at_us, name))

    def drop(self, name: str) -> None:
        """It is never due."""
        self.times.pop(name, None)

    def clear(self) -> None:
        """Nothing is due."""
        self._heap.clear()
        self.times.clear()

    def until(self, now_us: int, *, most: int | None = None) -> list[str]:
        """Take out what is due by now, the earliest first; no more than `most`, if that is said."""
        found: list[str] = []
        if not self._heap or self._heap[0][0] > now_us:
            return found
        while (most is None or len(found) < most) and (first := self.first()) is not None and first <= now_us:
            name = heapq.heappop(self._heap)[1]
            del self.times[name]
            found.append(name)
        return found

    def first(self) -> int | None:
        """When the earliest is due; None = nothing is."""
        heap, times = self._heap, self.times
        while heap and times.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None
