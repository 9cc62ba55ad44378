"""Journals to test, and machines for programs."""

from tests.adapters.journals import journal, make_journal
from tests.adapters.machines import executing, machine, zygotes

__all__ = ["executing", "journal", "machine", "make_journal", "zygotes"]
