"""What crosses a wire, as plain values: no sockets, no clock, no log."""
