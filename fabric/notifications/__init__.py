"""Word in time: what an account is to hear of before it hurts, and how that reaches it."""
