"""The states of a guest's heartbeat, what can happen in them, and what follows.

docs/protocol/1-guest-channel.md#challenge-and-response
docs/protocol/1-guest-channel.md#misses-and-losses
docs/protocol/1-guest-channel.md#resuming-a-guest

The states:

WAITING      Nobody has introduced itself, or whoever did is gone. We send nothing; the guest's `init`
             starts everything. So does the answer to a challenge that stayed open when a guest went that
             nobody called lost: it may have been asked before it could run. A connection that waits too
             long is given up (`Reconnect`).
RESUMING     We know the guest's last `init` and not whether the guest is there: the connection is new, or
             reporting has become enabled, or the time of its expected silence is over. It has a challenge
             and its patience. A guest that is there answers, and heartbeating goes on; one that has
             restarted sends `init`. One that does neither is gone, and that is a loss if it was heartbeating.
CHALLENGED   A challenge is open. The interval after it was sent decides.
RESTING      The challenge was answered; the rest of the interval passes before the next one.
CLOSED       The connection is of no more use. The owner closes it.

What can happen is an *input*: the guest says `INIT`, gives the `RIGHT` answer to the open challenge or
a `WRONG` one, or says `EXIT`; or the state's time is up: `DUE`. In CHALLENGED that is a `MISS` while
the misses in a row stay within the threshold, and beyond it a `LOSS`, or a `STOP` where silence is expected.
In RESUMING it is a `REPEAT` until the patience is over.

TRANSITIONS holds every pair of state and input that can occur, the state that follows, and the name of the
one action that does what is to be done; `Heartbeat` has a method for each. Beside the inputs, four things
change the state: the start with a known guest (`Heartbeat.resume`), the end of a notice, the end of expected
silence (`Heartbeat._go_quiet`, `Heartbeat._ask_whether_there`), and `Session.enable_reporting`.

A new state, input or action belongs here, in `session_heartbeat._ACTIONS` and in the walk of
tests/unit/server/child/test_session.py, which goes through every pair.
"""

from __future__ import annotations

from typing import Dict, Optional, Tuple

WAITING = "waiting"
RESUMING = "resuming"
CHALLENGED = "challenged"
RESTING = "resting"
CLOSED = "closed"
CHALLENGE_OPEN = (CHALLENGED, RESUMING)
STATES = (WAITING, RESUMING, CHALLENGED, RESTING, CLOSED)

INIT = "init"
RIGHT = "right answer"
WRONG = "wrong answer"
EXIT = "exit"
DUE = "due"
MISS = "miss"
LOSS = "loss"
STOP = "stop"
REPEAT = "repeat"
INPUTS = (INIT, RIGHT, WRONG, EXIT, DUE, MISS, LOSS, STOP, REPEAT)

ACKNOWLEDGE_INIT = "acknowledge the init"
ACCEPT_ANSWER = "accept the answer"
ACCEPT_EXIT = "accept the exit"
GIVE_UP_CONNECTION = "give up the connection"
REPEAT_CHALLENGE = "repeat the challenge"
END_RESUMING = "end the resuming"
COUNT_MISS = "count a miss"
COUNT_SILENT_MISS = "count a miss in expected silence"
END_IN_LOSS = "end in a loss"
CHALLENGE_AGAIN = "challenge again"

TRANSITIONS: Dict[Tuple[str, str], Tuple[str, Optional[str]]] = {
    (WAITING, INIT): (CHALLENGED, ACKNOWLEDGE_INIT),
    # To a challenge that stayed open: its guest was not called lost, and may have been asked before it ran.
    (WAITING, RIGHT): (RESTING, ACCEPT_ANSWER),
    (WAITING, WRONG): (WAITING, None),
    (WAITING, EXIT): (WAITING, ACCEPT_EXIT),
    (WAITING, DUE): (CLOSED, GIVE_UP_CONNECTION),
    (RESUMING, INIT): (CHALLENGED, ACKNOWLEDGE_INIT),
    (RESUMING, RIGHT): (RESTING, ACCEPT_ANSWER),
    (RESUMING, WRONG): (RESUMING, None),
    (RESUMING, EXIT): (WAITING, ACCEPT_EXIT),
    (RESUMING, REPEAT): (RESUMING, REPEAT_CHALLENGE),
    (RESUMING, DUE): (WAITING, END_RESUMING),
    (CHALLENGED, INIT): (CHALLENGED, ACKNOWLEDGE_INIT),
    (CHALLENGED, RIGHT): (RESTING, ACCEPT_ANSWER),
    # Neither an answer nor a miss: the interval decides.
    (CHALLENGED, WRONG): (CHALLENGED, None),
    (CHALLENGED, EXIT): (WAITING, ACCEPT_EXIT),
    # There is no (CHALLENGED, DUE): `Heartbeat.choose_due_input` names it MISS, STOP or LOSS.
    (CHALLENGED, MISS): (CHALLENGED, COUNT_MISS),
    (CHALLENGED, STOP): (CHALLENGED, COUNT_SILENT_MISS),
    (CHALLENGED, LOSS): (WAITING, END_IN_LOSS),
    (RESTING, INIT): (CHALLENGED, ACKNOWLEDGE_INIT),
    # The same answer again: its challenge is not closed before the next one.
    (RESTING, RIGHT): (RESTING, None),
    (RESTING, WRONG): (RESTING, None),
    (RESTING, EXIT): (WAITING, ACCEPT_EXIT),
    (RESTING, DUE): (CHALLENGED, CHALLENGE_AGAIN),
    # Until the owner closes the connection its guest may go on speaking.
    (CLOSED, INIT): (CLOSED, None),
    (CLOSED, RIGHT): (CLOSED, None),
    (CLOSED, WRONG): (CLOSED, None),
    (CLOSED, EXIT): (CLOSED, None),
    (CLOSED, DUE): (CLOSED, None),
}
