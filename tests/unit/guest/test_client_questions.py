"""Votes and notices on the guest's side: the ballot, and the time that is left."""

from __future__ import annotations

import pytest
from client_driver import Bench, names

from guestmtce.guest.ballot import Ballot
from guestmtce.guest.client import AskVoters, WithdrawQuestion
from guestmtce.wire.guest_channel import NOTICE, VOTE, ActionResponse

TWO = ("process db", "script")


@pytest.mark.parametrize(
    ("kind", "voters", "said", "outcome"),
    [
        (VOTE, (), [], ("accept", "")),
        (NOTICE, (), [], ("complete", "")),
        (VOTE, ("script",), [], None),
        (VOTE, ("script",), [("script", "accept", "fine")], ("accept", "fine")),
        (NOTICE, ("script",), [("script", "accept", "fine")], ("complete", "fine")),
        (VOTE, ("script",), [("script", "reject", "no")], ("reject", "no")),
        (VOTE, ("script",), [("script", "error", "broken")], ("error", "broken")),
        (VOTE, TWO, [("script", "accept", "")], None),
        (VOTE, TWO, [("process db", "reject", "busy")], ("reject", "process db: busy")),
        (VOTE, TWO, [("process db", "reject", "")], ("reject", "process db")),
        (VOTE, TWO, [("process db", "reject", "writes disk X")], ("reject", "process db: writes disk X")),
        (NOTICE, TWO, [("process db", "reject", "busy")], None),
        (NOTICE, TWO, [("process db", "reject", "busy"), ("script", "accept", "")],
         ("reject", "process db: busy")),
        (VOTE, TWO, [("process db", "accept", "x"), ("script", "error", "e")], ("error", "e")),
        (VOTE, TWO, [("process db", "accept", "x"), ("script", "accept", "y")], ("accept", "y")),
        (VOTE, TWO, [("stranger", "reject", "x"), ("script", "accept", ""), ("script", "reject", "")], None),
    ],
)  # fmt: skip
def test_the_outcome_of_a_ballot(kind, voters, said, outcome):
    ballot = Ballot(kind, voters)
    for voter, result, reason in said:
        ballot.count_vote(voter, result, reason)
    assert ballot.outcome == outcome


@pytest.mark.parametrize(("reason", "told"), [("", "process db"), ("disk:", "process db: disk:")])
def test_a_local_process_s_reason_is_told_as_it_is(reason, told):
    ballot = Ballot(VOTE, TWO)
    ballot.count_vote("process db", "reject", reason)
    assert ballot.outcome_at_deadline() == ("reject", told)


def test_who_leaves_is_not_waited_for():
    ballot = Ballot(VOTE, TWO)
    ballot.count_vote("script", "accept", "")
    ballot.remove_voter("process db")
    assert ballot.outcome == ("accept", "")


def test_a_ballot_whose_time_is_up_names_the_late_or_who_rejected():
    ballot = Ballot(NOTICE, TWO)
    assert ballot.outcome_at_deadline() == ("timeout", "no answer in time from process db, script")
    ballot.count_vote("process db", "reject", "busy")
    assert ballot.outcome_at_deadline() == ("reject", "process db: busy")


# --- at the client ---------------------------------------------------------------------------------


def test_a_question_without_voters_is_answered_at_once_with_the_hosts_id():
    bench = Bench().enabled()
    bench.ask(ident=77)
    bench.ask("irrevocable", "reboot", ident=78)
    assert bench.wrote(ActionResponse) == [
        ActionResponse(77, "stop", "revocable", "accept", ""),
        ActionResponse(78, "reboot", "irrevocable", "complete", ""),
    ]


@pytest.mark.parametrize(("timeout_ms", "seconds"), [(9000, 8), (3000, 2), (2000, 1), (700, 0.35), (0, 0)])
def test_the_answer_comes_a_second_before_the_hosts_time_out_or_after_half_of_it(timeout_ms, seconds):
    bench = Bench(voters=["script"]).enabled()
    asked = bench.now
    bench.ask(timeout_ms=timeout_ms)
    assert bench.told(AskVoters)[0].seconds == seconds
    while not bench.wrote(ActionResponse):
        bench.tick()
    assert bench.now - asked == pytest.approx(seconds)
    assert bench.wrote(ActionResponse)[0].vote_result == "timeout"
    assert bench.told(WithdrawQuestion) == [WithdrawQuestion(1, expired=True)]


def test_an_answer_settles_and_a_second_one_is_nobodys():
    bench = Bench(voters=["script"]).enabled()
    bench.ask()
    bench.vote(1, "script", "reject", "why")
    bench.vote(1, "script")
    bench.vote(2, "script")
    assert bench.wrote(ActionResponse) == [ActionResponse(5, "stop", "revocable", "reject", "why")]
    assert bench.told(WithdrawQuestion) == [WithdrawQuestion(1, expired=False)]


def test_another_question_ends_the_open_one_without_an_answer():
    bench = Bench(voters=["script"]).enabled()
    bench.ask(event="pause")
    bench.ask("irrevocable", "suspend", ident=6)
    assert bench.told(WithdrawQuestion) == [WithdrawQuestion(1)]
    bench.vote(1, "script", "reject")
    bench.vote(2, "script")
    assert bench.wrote(ActionResponse) == [ActionResponse(6, "suspend", "irrevocable", "complete", "")]


def test_the_same_question_again_is_the_same_question():
    bench = Bench(voters=["script"]).enabled()
    bench.ask(timeout_ms=9000)
    bench.now += 5
    bench.ask(timeout_ms=4000, ident=6)
    assert len(bench.told(AskVoters)) == 1 and bench.told(WithdrawQuestion) == []
    bench.now += 2
    bench.vote(1, "script")
    assert bench.wrote(ActionResponse) == [ActionResponse(6, "stop", "revocable", "accept", "")]


def test_the_same_question_again_is_answered_before_its_new_time_out():
    bench = Bench(voters=["script"]).enabled()
    bench.ask(timeout_ms=9000)
    bench.now += 5
    bench.ask(timeout_ms=4000)
    asked = bench.now
    while not bench.wrote(ActionResponse):
        bench.tick()
    assert bench.now == asked + 3 and bench.wrote(ActionResponse)[0].vote_result == "timeout"


def test_a_question_before_the_acknowledgement_is_answered_too():
    bench = Bench()
    bench.open()
    bench.ask()
    assert names(bench.wrote(ActionResponse)) == "ActionResponse"


def test_an_unknown_event_is_an_error_and_nobody_is_asked():
    bench = Bench(voters=["script"]).enabled()
    bench.ask(event="explode")
    assert bench.told(AskVoters) == []
    assert bench.wrote(ActionResponse)[0].vote_result == "error"


def test_a_host_that_is_gone_gets_no_answer():
    bench = Bench(voters=["script"]).enabled()
    bench.ask()
    bench.close()
    bench.vote(1, "script")
    assert bench.wrote(ActionResponse) == []


def test_an_exit_withdraws_what_is_open():
    bench = Bench(voters=["script"]).enabled()
    bench.ask()
    bench.keep(bench.client.say_goodbye("bye", bench.now))
    assert bench.told(WithdrawQuestion) == [WithdrawQuestion(1)]
    assert names(bench.sent[-1:]) == "Exit"
