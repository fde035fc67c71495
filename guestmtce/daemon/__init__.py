"""What both daemons need of the system they run on."""
