"""Measures guestServer: what a heartbeat and a process cost, and how late everything is."""
