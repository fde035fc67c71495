"""Lines cut out of a stream, and texts cut to a size, against docs/protocol/1-guest-channel.md#framing.

What `load_object` recovers is tested by the messages that need it: test_guest_channel.py, test_datagram.py.
"""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiers import examples

from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.json_lines import LineBuffer, NotAMessage

PATIENT = settings(deadline=None, max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow])


def test_empty_and_overlong_lines_are_dropped_and_the_next_is_read():
    buffer = LineBuffer()
    assert buffer.feed(b"\n\n \n\t\r\na\n" + guest_channel.RESYNC) == [b"a"]
    assert buffer.feed(b"x" * json_lines.LINE_MAX + b"\n") == [b"x" * json_lines.LINE_MAX]
    assert buffer.feed(b"x" * (json_lines.LINE_MAX + 1)) == []
    assert buffer.feed(b"more of it") == []
    assert buffer.feed(b"and its end\nnext\nrest") == [b"next"]
    assert (buffer.feed(b"\n"), buffer.overflows) == ([b"rest"], 1)


long_lines = [fill * (json_lines.LINE_MAX + more) for fill in (b"x", b" ") for more in (0, 1, 2)]
segments = st.lists(
    st.sampled_from([b"", b" ", b"\r", b"half", *long_lines]) | st.binary(max_size=5), max_size=8
)


@PATIENT
@given(segments, st.lists(st.integers(0, 3 * json_lines.LINE_MAX), max_size=8))
def test_the_same_lines_come_out_however_the_stream_is_cut(parts, cuts):
    stream = b"\n".join(parts)
    every = stream.split(b"\n")
    expected = [line for line in every[:-1] if line.strip() and len(line) <= json_lines.LINE_MAX]
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    buffer, lines = LineBuffer(), []
    for start, end in zip(borders, borders[1:]):
        lines += buffer.feed(stream[start:end])
        kept = [getattr(buffer, slot) for slot in buffer.__slots__]
        assert sum(len(value) for value in kept if isinstance(value, bytes)) <= json_lines.LINE_MAX
    assert lines == expected
    assert buffer.overflows == sum(len(line) > json_lines.LINE_MAX for line in every)


def test_an_overlong_line_ends_at_the_next_newline_wherever_the_stream_is_cut():
    lines = LineBuffer()
    assert lines.feed(b"x" * (json_lines.LINE_MAX + 1)) == []
    assert lines.feed(b"\n") == []
    assert lines.feed(b"{}\n") == [b"{}"]
    assert lines.overflows == 1


@pytest.mark.parametrize(("size", "taken"), [(json_lines.LINE_MAX, True), (json_lines.LINE_MAX + 1, False)])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_line_may_have_4096_bytes(size, taken, at_once):
    lines, data = LineBuffer(), b"x" * size
    read = lines.feed(data + b"\n") if at_once else lines.feed(data) + lines.feed(b"\n")
    assert (read, lines.overflows) == ([data] * taken, not taken)


@PATIENT
@given(st.text(max_size=80) | st.text("aé€\U0001f600", max_size=80), st.integers(0, 90))
def test_clean_cuts_on_a_border_of_characters(text, limit):
    cut = json_lines.clean_text(text, limit)
    assert text.startswith(cut) and len(cut.encode()) <= limit
    assert cut == text or len((cut + text[len(cut)]).encode()) > limit


def test_a_lone_surrogate_is_replaced():
    assert json_lines.clean_text("a\ud800b") == "a?b"


# --- objects ---------------------------------------------------------------------------------------


def test_of_a_key_that_comes_twice_the_decoder_says_which_value_counts():
    text = '{"uuid": "first", "uuid": "second"}'
    assert json_lines.load_object(text, "reason") == {"uuid": "second"}
    assert json_lines.load_object(text, "reason", json_lines.FIRST_WINS) == {"uuid": "first"}


def test_a_key_that_an_unescaped_text_smuggles_in_counts_for_nothing():
    smuggled = '{"uuid": "mine", "reason": "x", "uuid": "yours"}'
    assert json_lines.load_object(smuggled, "reason", json_lines.FIRST_WINS)["uuid"] == "mine"
    broken = '{"uuid": "mine", "reason": "a "quoted" word", "uuid": "yours"}'
    assert json_lines.load_object(broken, "reason", json_lines.FIRST_WINS)["uuid"] == "mine"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}', '{"a": -Infinity}', "{} {}", "[" * 100_000])
def test_what_is_no_object_is_no_message(text):
    with pytest.raises(NotAMessage):
        json_lines.load_object(text, "log_msg")


@PATIENT
@given(st.dictionaries(st.text(max_size=9), st.integers() | st.text(max_size=40), max_size=5))
def test_proper_json_is_read_as_it_is(fields):
    assert json_lines.load_object(json.dumps(fields), "log_msg") == fields
