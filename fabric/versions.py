"""The versions of what outlives the code that wrote it: rules of decisions, and the format of snapshots.

*Rules.* Each entry of a journal belongs to a rules version, and is decided again by that. A change after which some journal
would be decided otherwise gets the next number here, and keeps the old way behind it until no journal that is supported
needs that:

    DEARER_KEYS: Final = 2                              # here, and in SINCE with the release that brings it
    if core.state.rules < versions.DEARER_KEYS:         # where it is decided
        return the_old_way(...)

An event that comes, or a field of one, is such a change too. Wording is none, nor is what was refused without a trace. The
code that takes a journal over says so by an entry (`AdoptRules`): from there on the newest rules decide, and code that
doesn't know them refuses the journal. Ideas: Raft's versioned state machines, TigerBeetle's releases.

*Format.* Whatever changes in the records of the gate's state, or in what they mean, makes the next: a snapshot of another
format is passed over and the journal decided again, so that no state goes on that a replay would not come to.

`tests/journals` fails where one of them was forgotten.
"""

from typing import Final

BEFORE: Final = 0
"""The rules of a journal that hasn't said by which: begun before 0.2.0, or new. They decide like 1."""
PRICES_OF_THEIR_TIME: Final = 2
"""Use on credit that is booked after other prices began has the price of its time, subscribers keep their terms until they were told
of others and a cycle has passed, and policy that is set by hand says nothing of prices.
"""
RULES: int = 2
"""The newest rules that this code knows, and goes over to."""
SINCE: dict[int, str] = {1: "0.2.0", 2: "0.2.0"}
"""The first release that knew them: none before it can go on with a journal that was taken over by them."""
FORMAT: int = 1
"""Of the snapshots that this code writes and reads."""
