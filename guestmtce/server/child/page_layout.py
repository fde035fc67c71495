"""Memory laid out so that a forked process shares nearly all of it.

After a fork a page stays shared until one of the two writes to it, and Python writes wherever it looks:
every object that is used has its reference count changed. So what a child costs is the number of pages
on which something lies that it uses, and on which it finds room for what it makes. Import and warm-up
leave holes all over; what is made after them lies scattered in these holes.

`fill_holes` makes whatever comes next lie side by side, on pages of its own. The spawner calls it before it
imports our modules, and again before it makes what every child starts with. `gather` does the same with code:
most of it is seldom used, and what a healthy guest needs of it lies between.

What it wins: docs/performance.md#a-child. It costs the spawner 30 ms at its start, and nothing afterwards.

What it works on: CPython's small-object allocator (pools of one size of block each, 3.9 to 3.13) and glibc's
malloc. Any other (musl's, PYTHONMALLOC=malloc, a CPython with another allocator) shows at the first size that
it is another: then nothing is won, and what was tried is given back.

How to do without: `[debug] page_layout = no` in guestServer.ini. The spawner then forks plainly from clean
memory: its children do the same, and each has more memory for itself. Nothing else depends on this module.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import math
import sys
from opcode import opmap
from types import CodeType, FunctionType
from typing import Any, Callable, Dict, List, Tuple

POOL_SIZE = 16 * 1024  # bytes; CPython's pools are of one size of block each (3.9: 4 KiB, which divides it)
POOL_HEADER = 48  # bytes before the first block of a pool
BLOCK_STEP = 16  # bytes between the sizes of blocks
BLOCK_MAX = 512  # bytes; larger blocks come from malloc
BYTES_OVERHEAD = 33  # bytes that a `bytes` object is larger than its contents
CHUNK_MAX = 64 * 1024  # bytes; the largest hole in malloc's heap worth filling
# Where no new pool was begun, or the heap has not grown, after so many blocks of one size, the allocator is
# another. CPython 3.9 to 3.13 was seen to take 1,020 and glibc 8.
TRIES_MAX = 20_000
HEAP_TRIES_MAX = 500
# So many blocks from a pool's beginning, in order, show that it is new: two may have been freed in order.
# After so many tries two are enough: where something else is made meanwhile, four never come in order.
NEW_POOL = 4
SURE_TRIES_MAX = 2_000

# What the master says when it starts a spawner.
LAID_OUT = "laid out"
PLAIN = "plain"

NOTHING_TO_DO = bytes([opmap["NOP"], 0])  # an instruction

# All that filling needs is made here: what it made and dropped meanwhile would be a hole.
_filling: List[Any] = []  # kept for ever
_tried = [0] * HEAP_TRIES_MAX  # blocks of malloc's, of one size
_makers: List[Tuple[int, Callable[[], Any]]] = [
    (1 * BLOCK_STEP, object),
    (2 * BLOCK_STEP, functools.partial(float, 1)),
    *(
        (size, functools.partial(bytes, size - BYTES_OVERHEAD))
        for size in range(3 * BLOCK_STEP, BLOCK_MAX + 1, BLOCK_STEP)
    ),
]

# Not `libc`: what is imported before the holes are filled lies among them, and children use that handle.
_malloc = ctypes.CDLL(None).malloc
_malloc.restype = ctypes.c_size_t
_malloc.argtypes = [ctypes.c_size_t]
_free = ctypes.CDLL(None).free
_free.restype = None
_free.argtypes = [ctypes.c_size_t]
_is_wanted = True


def choose(layout: str) -> None:
    """LAID_OUT, or PLAIN: nothing here does anything from now on."""
    global _is_wanted
    _is_wanted = layout != PLAIN


def fill_holes() -> None:
    """Let blocks of every size come from a new pool, and larger ones from the heap's end, from now on."""
    if not _is_wanted:
        return
    for size, make_block in _makers:
        if not _fill_pools(size, make_block):
            break
    _fill_heap()


def _fill_pools(size: int, make_block: Callable[[], Any]) -> bool:
    """Until the first blocks of a pool come one after the other: this pool is new. Whether one was.

    The numbers of blocks are objects of two steps themselves: they lie before and between two such blocks.
    Of three steps something is made and dropped each time.
    """
    last = in_order = 0
    others = 3 * size if size == 2 * BLOCK_STEP else 0
    enough = NEW_POOL if size > 3 * BLOCK_STEP else 2
    for tries in range(TRIES_MAX):
        _filling.append(make_block())
        block = id(_filling[-1])
        if in_order and last + size <= block <= last + size + others:
            in_order += 1
        else:
            in_order = int(0 <= block % POOL_SIZE - POOL_HEADER <= others)
        if in_order == enough or (in_order == 2 and tries > SURE_TRIES_MAX):
            return True
        last = block
    del _filling[-TRIES_MAX:]
    return False


def _fill_heap() -> None:
    """Take every hole, from the largest to the smallest: one is filled when the heap grows instead."""
    end = 0
    for size in (*range(CHUNK_MAX, 4096, -1024), *range(4096, BLOCK_MAX, -BLOCK_STEP)):
        for tries in range(HEAP_TRIES_MAX):
            start = _tried[tries] = _malloc(size)
            if start > end:
                end = start
                break
        else:
            for block in _tried:
                _free(block)
            return


def gather(codes: List[CodeType]) -> None:
    """Make the code of all functions that have one of `codes` anew, side by side.

    CPython counts references to a code object while it runs. What is small lies among blocks of its own
    size, a page for each size: so all of it is made large, by instructions that are never reached.
    """
    if not _is_wanted:
        return
    order = {code: place for place, code in enumerate(codes)}
    functions = [
        found for found in gc.get_objects() if type(found) is FunctionType and found.__code__ in order
    ]
    functions.sort(key=lambda function: order[function.__code__])
    fill_holes()
    for function in functions:
        code = function.__code__
        lacking = max(0, BLOCK_MAX + BLOCK_STEP - code.__sizeof__())
        padding = NOTHING_TO_DO * math.ceil(lacking / len(NOTHING_TO_DO))
        function.__code__ = code.replace(co_code=code.co_code + padding)


def list_codes_run_by(run: Callable[[], Any]) -> List[CodeType]:
    """What Python code `run` runs through, in the order of its first use."""
    seen: Dict[CodeType, None] = {}

    def note_call(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            seen.setdefault(frame.f_code)

    sys.setprofile(note_call)
    try:
        run()
    finally:
        sys.setprofile(None)
    return list(seen)
