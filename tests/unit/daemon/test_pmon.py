"""pmon's pulses, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmtce.daemon import pmon


@pytest.mark.parametrize("ending", [b"", b"\0", b"\0\0\0"])
def test_a_pulse_is_answered_with_its_number_and_the_magic_turned(ending):
    assert pmon.answer("guestServer", b"guestServer 12345678 17" + ending) == b"guestServer edcba987 17"


@pytest.mark.parametrize(
    "pulse",
    [
        b"", b"guestServer", b"guestServer 12345678", b"guestAgent 12345678 1", b"guestServer edcba987 1",
        b"guestServer 12345678 -1", b"guestServer 12345678 1 2", b"guestServer x 1", b"\xff 12345678 1",
        b"guestServer 12345678 " + b"9" * 21, "guestServer 12345678 \u0661".encode(),
    ],
)  # fmt: skip
def test_what_is_no_pulse_for_us_is_refused(pulse):
    with pytest.raises(ValueError):
        pmon.answer("guestServer", pulse)


@given(st.binary(max_size=100))
def test_any_bytes_are_answered_or_refused(pulse):
    try:
        answer = pmon.answer("guestServer", pulse)
    except ValueError:
        return
    assert answer.startswith(b"guestServer edcba987 ")
