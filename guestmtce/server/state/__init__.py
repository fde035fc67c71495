"""What guestServer knows of its guests and hosts, and what follows. Pure: no clock, socket, file or log."""
