"""The C library, for what Python has no call for.

PyDLL keeps the interpreter's lock while it calls: none of these calls waits, and what clone(2) makes goes on
with the lock. ctypes.get_errno() is what the last call set.

Whoever needs a function in a child binds it, and makes its arguments, in the spawner: what a child resolves
or allocates becomes a page of its own.
"""

from __future__ import annotations

import ctypes

libc = ctypes.PyDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
