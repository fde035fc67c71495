"""guestClient: the heartbeat client inside a guest. Python 3.6 and later, standard library only."""
