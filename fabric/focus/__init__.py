"""FOCUS 1.4: an account's cost and usage, and its contract commitments, as other people's tools import them; and a check of it."""
