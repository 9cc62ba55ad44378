"""The small models that examples and the demo train."""
