"""Providers of payments, a file each behind one port, and the desk that stands between them and the gate."""
