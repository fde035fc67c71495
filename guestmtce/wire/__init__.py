"""What crosses a wire, as plain values: no sockets, no clock, no log, no files.

Imports the standard library and wire only. guestClient and every child load a part of it: guest_channel and
json_lines stay Python 3.6-clean, and what guest_channel imports costs every child.
"""
