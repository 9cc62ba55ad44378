"""Stand-ins: a store in memory whose every call waits for its turn, and a director who hands the turns out at random.

So a few lines of protocol run through thousands of different interleavings, each of which a seed brings back.
"""

import random
import threading

from fabric.errors import NotFound, Unavailable

FAILING = 0.05
"""So many writes fail, half of them after they were carried out."""


class MemoryStore:
    """Keeps the promises of a store, as long as the process lives."""

    def __init__(self, director=None):
        self.values = {}
        self.director = director

    def turn(self):
        if self.director is not None:
            self.director.wait_for_turn()

    def put(self, key, data, *, once=False):
        self.turn()
        luck = self.director.dice.random() if self.director is not None else 1.0
        if luck < FAILING / 2:
            raise Unavailable("nothing was done", code="store_failed")
        if once and key in self.values:
            return False
        self.values[key] = bytes(data)
        if luck < FAILING:
            raise Unavailable("it was done, and the answer was lost", code="store_failed")
        return True

    def put_file(self, key, path):
        raise NotImplementedError

    def get(self, key):
        self.turn()
        try:
            return self.values[key]
        except KeyError:
            raise NotFound(key, code="blob_not_found") from None

    def chunks(self, key):
        yield self.get(key)

    def span(self, key, start, size):
        return self.get(key)[start : start + size]

    def keys(self, prefix):
        self.turn()
        return sorted(key for key in self.values if key.startswith(f"{prefix}/"))

    def folders(self, prefix):
        return sorted({key.removeprefix(f"{prefix}/").partition("/")[0] for key in self.keys(prefix)})

    def copy(self, key, to):
        self.put(to, self.get(key))

    def delete(self, key):
        self.turn()
        self.values.pop(key, None)

    def delete_folder(self, prefix):
        for key in self.keys(prefix):
            self.delete(key)

    def tidy(self, prefix):
        pass


class Director:
    """Lets one actor at a time take one step, which one is chance; an actor may be put to sleep for long."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.turns = {}
        self.waiting = {}
        self.lock = threading.Condition()
        self.clock = 0

    def wait_for_turn(self):
        name = threading.current_thread().name
        if name not in self.turns:
            return
        with self.lock:
            self.waiting[name] = True
            self.lock.notify_all()
        self.turns[name].acquire()

    def play(self, actors):
        """Run all actors (name → function) to their ends."""
        threads = {}
        for name, act in actors.items():
            self.turns[name] = threading.Semaphore(0)
            threads[name] = threading.Thread(target=self._acting, args=(name, act), name=name, daemon=True)
        self.left = set(actors)
        for thread in threads.values():
            thread.start()
        asleep = {}
        while True:
            with self.lock:
                while any(name not in self.waiting for name in self.left):
                    assert self.lock.wait(30), "an actor hangs"
                if not self.left:
                    return
                self.clock += 1
                asleep = {name: until for name, until in asleep.items() if until > self.clock and name in self.left}
                ready = sorted(self.left - set(asleep)) or sorted(self.left)
                chosen = self.dice.choice(ready)
                if self.dice.random() < 0.05:
                    asleep[chosen] = self.clock + self.dice.randrange(5, 120)
                del self.waiting[chosen]
            self.turns[chosen].release()

    def _acting(self, name, act):
        self.wait_for_turn()
        try:
            act()
        finally:
            with self.lock:
                self.left.discard(name)
                self.waiting.pop(name, None)
                self.lock.notify_all()
