"""What guestClient and the daemons share. Python 3.6, standard library only; imports nothing of ours."""
