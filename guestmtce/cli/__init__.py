"""The command `guestmtce`, the manual pages, and the files that pip does not put in place."""
