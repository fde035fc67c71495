"""guestAgent: stands between the guestServers and the VIM."""
