"""How two daemons on different hosts believe and confirm each other: authentication, retransmission."""
