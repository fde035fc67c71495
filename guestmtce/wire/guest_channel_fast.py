"""Short cuts for the messages of a guest that is well (docs/protocol/1-guest-channel.md#messages).

Nearly all that a host ever reads and writes are the answers and the `init` just as the deployed client
prints them, the challenges and the `init_ack`. A regular expression and a format cost a fraction of what
`guest_channel` takes for any message. What is read here is read strictly: None says that the line is for
`guest_channel.parse`, and whatever is not None is what `guest_channel.parse` finds as well.

Python 3.6-clean and pure, like `guest_channel`.
"""

import re
from typing import Optional

from guestmtce.wire.guest_channel import CORRECTIVE_ACTIONS, INT32_MAX, NAME_MAX, REVISION, VERSION, Init

_HEAD = '{"version":%d,"revision":%d,"msg_type":' % (VERSION, REVISION)
_UINT = "(0|[1-9][0-9]{0,9})"  # may be beyond int32: whoever reads it compares it with INT32_MAX
_SECS = "(0|[1-9][0-9]{0,5})"  # below SECS_MAX
_SEQUENCE = '"sequence":(?:0|[1-9][0-9]{0,8})'
_ACTION = '"corrective_action":"(%s)"' % "|".join(CORRECTIVE_ACTIONS)
_NAME = "([ !#-[\\]-~]{0,%d})" % NAME_MAX  # printable ASCII that is not escaped

# The order of the fields is that of the deployed client's printf. Another order is no fault: it is read by
# guest_channel.
_ANSWER = _HEAD + (
    '"challenge_response",%s,"heartbeat_response":%s,"heartbeat_health":"healthy",%s,"log_msg":""}'
    % (_SEQUENCE, _UINT, _ACTION)
)
_INIT = _HEAD + (
    '"init",%s,"invocation_id":%s,"name":"%s","heartbeat_interval_ms":%s,"vote_secs":%s,'
    '"shutdown_notice_secs":%s,"suspend_notice_secs":%s,"resume_notice_secs":%s,"restart_secs":%s,%s}'
    % (_SEQUENCE, _UINT, _NAME, _UINT, _SECS, _SECS, _SECS, _SECS, _SECS, _ACTION)
)
_match_answer = re.compile(_ANSWER.encode("ascii")).fullmatch
_match_init = re.compile(_INIT.encode("ascii")).fullmatch

_CHALLENGE = ("\n" + _HEAD + '"challenge","sequence":%d,"heartbeat_challenge":%d}\n').encode("ascii")
_INIT_ACK = ("\n" + _HEAD + '"init_ack","sequence":%d,"invocation_id":%d}\n').encode("ascii")


def parse_healthy_answer(line: bytes) -> Optional[int]:
    """The `heartbeat_response` of an answer that says nothing but `healthy`; None: ask guest_channel."""
    match = _match_answer(line)
    if match is None:
        return None
    response = int(match.group(1))
    return response if response <= INT32_MAX else None


def parse_init(line: bytes) -> Optional[Init]:
    """The init in `line`, as the deployed client prints it; None: ask guest_channel."""
    match = _match_init(line)
    if match is None:
        return None
    invocation_id, name, interval, vote, shutdown, suspend, resume, restart, action = match.groups()
    if int(invocation_id) > INT32_MAX or int(interval) > INT32_MAX:
        return None
    return Init(
        int(invocation_id), name.decode("ascii"), int(interval), int(vote), int(shutdown), int(suspend),
        int(resume), int(restart), action.decode("ascii"),
    )  # fmt: skip


def build_challenge(sequence: int, challenge: int) -> bytes:
    """The bytes of a challenge, framing included; both are in 0 … 2³¹−1."""
    return _CHALLENGE % (sequence, challenge)


def build_init_ack(sequence: int, invocation_id: int) -> bytes:
    """The bytes of an init_ack, framing included; both are in 0 … 2³¹−1."""
    return _INIT_ACK % (sequence, invocation_id)
