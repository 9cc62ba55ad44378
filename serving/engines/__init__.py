"""Engines behind one port, a file each, with the meter in them."""
