"""Calls of a language model beside the chaos: whole ones, streams, and some that are cut by their caller."""

import random
import threading
import time
from collections import Counter

import openai

from fabric.client.client import new_request_id
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from fabric.wire import format_key, hash_secret, make_secret

MODEL = "byte-lm"
PROMPTS = ("import os", "def main(", "x", "return " * 20)
INPUT, OUTPUT = 40, 400
"""µHs for a token."""
UNREPORTED_S = 15
"""What a replica has served for so long before it was cut off, it may not have reported: nobody is charged for that."""
OURS = 500
"""The status of a mistake of ours: what is away for a while, or was cut, has another, and a text."""


class Callers:
    """A customer that calls until it is told to stop."""

    def __init__(self, place, seed, *, tokens="5"):
        self.fabric = place.customer(tokens)
        self.credit = int(tokens) * UHS_PER_CT
        self.dice = random.Random(seed)
        secret = make_secret()
        asked = pb.CreateKeyRequest(request_id=new_request_id(), secret_sha256=hash_secret(secret), name="calls")
        made = self.fabric.client.call(asked, pb.CreateKeyReply)
        key = format_key(made.key_id, secret)
        self.client = openai.OpenAI(base_url=place.found.endpoint, api_key=key, max_retries=2, timeout=60)
        self.told = []
        """What whole answers said they used: (when, (prompt, completion))."""
        self.ends = Counter()
        """How calls ended: by way, or by the error's class, status and code."""
        self.mistakes = []
        """What was said with a status of 500: (when, what, the gateway's name for the call)."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self):
        self._thread.start()

    def end(self):
        self._over.set()
        self._thread.join()

    def _run(self):
        while not self._over.wait(self.dice.random()):
            how = self.dice.choice(("whole", "stream", "cut"))
            try:
                self.ends[how] += bool(getattr(self, f"_{how}")())
            except openai.APIError as error:
                status = getattr(error, "status_code", "")
                self.ends[f"{type(error).__name__} {status} {error.code}"] += 1
                if status == OURS:
                    self.mistakes.append((time.time(), error.body or str(error), getattr(error, "request_id", "")))

    def _asked(self, **options):
        return self.client.completions.create(
            model=MODEL, prompt=self.dice.choice(PROMPTS), max_tokens=self.dice.randrange(1, 60),
            extra_body={"ignore_eos": True}, **options,
        )  # fmt: skip

    def _whole(self):
        return self._note(self._asked().usage)

    def _stream(self):
        *_, last = self._asked(stream=True, stream_options={"include_usage": True})
        return last.usage is not None and self._note(last.usage)

    def _cut(self):
        stream = self._asked(stream=True)
        for _, _ in zip(range(self.dice.randrange(10)), stream, strict=False):
            pass
        stream.close()
        return True

    def _note(self, usage):
        self.told.append((time.time(), (usage.prompt_tokens, usage.completion_tokens)))
        return True

    def check(self, cut_off=()):
        """What was told was booked, once, and nothing else was taken; no call was answered by a mistake of ours; how many calls
        were booked.

        `cut_off` says when a replica was: what it had not reported is nobody's to pay, and what it held stays set aside.
        """
        assert not self.mistakes, [*self.mistakes, "the gateway's log has the rest"]
        deadline = time.monotonic() + 60
        while (balance := self.fabric.balance()).held_uhs and not (cut_off and time.monotonic() > deadline):
            assert time.monotonic() < deadline, f"{balance.held_uhs} µHs are held for calls that are over"
            time.sleep(0.5)
        records = [cdr for cdr in self.fabric.client.stream(pb.UsageRequest(), pb.Cdr) if cdr.model]
        assert len({cdr.cdr_id for cdr in records}) == len(records)
        for cdr in records:
            fresh = cdr.prompt_tokens - cdr.cached_tokens
            assert cdr.charged_uhs <= fresh * INPUT + cdr.cached_tokens * INPUT + cdr.completion_tokens * OUTPUT
        booked = Counter((cdr.prompt_tokens, cdr.completion_tokens) for cdr in records)
        missing = Counter(used for _, used in self.told) - booked
        excused = Counter(
            used for at, used in self.told if any(cut - UNREPORTED_S <= at <= cut + UNREPORTED_S for cut in cut_off)
        )
        assert not missing - excused, f"told and not booked: {missing - excused}"
        assert balance.free_uhs == self.credit - balance.held_uhs - sum(cdr.charged_uhs for cdr in records)
        return len(records)
