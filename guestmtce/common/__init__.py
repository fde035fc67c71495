"""What guestClient and the daemons share. Python 3.6, standard library only; imports nothing of ours."""

NEVER = float("inf")  # as a moment in s on any clock
