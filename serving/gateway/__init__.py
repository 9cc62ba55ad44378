"""The OpenAI-compatible front door: who may call which model, whose turn it is, and which replica answers.

Raw ASGI in front, aiohttp behind, several processes on one port. It decides who is let in and in which order, and passes
on what the engine says, byte for byte. It knows nothing of money: what a call costs is metered in the replica.
"""
