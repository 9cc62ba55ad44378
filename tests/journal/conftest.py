"""Journals to follow, on SQLite and on PostgreSQL."""

from tests.adapters.journals import journal, make_journal

__all__ = ["journal", "make_journal"]
