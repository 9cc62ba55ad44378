"""Finds what uses devices without a lease, and ends it."""
