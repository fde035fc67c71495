"""Serves the VIM's HTTP commands: every thread but one of guestAgent is here."""
