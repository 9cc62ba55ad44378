"""Cluster files, price files, and what their sections may say."""
