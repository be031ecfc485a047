"""A judge gets each request once, under any fault; unusable replies are not kept, and judges are not mixed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from judges import KEY, ask, judge, lines, requests
from loopback import CLOSES, EMPTY, HANGS, MODEL, NO_JSON, WITHOUT_LOGPROBS, Fault, completion, loopback
from paths import ROOT
from sftmix.errors import InputError
from sftmix.evaluation.judge.cost import Price

FAULTS = {
    0: Fault.status(429),
    1: Fault.status(500),
    2: EMPTY,
    3: CLOSES,
    4: NO_JSON,
    5: Fault(changes={"finish": "content_filter"}),
    6: Fault.status(503),
    7: Fault(body=b'{"choices": []}'),
    8: Fault(body=b"null"),
}


def each_once(faults):
    """Faults by the number of the question. Each fault happens once, so no question has several."""
    left = dict(faults)

    def script(_, body):
        return left.pop(int(body["messages"][0]["content"].rstrip(".").rpartition(" ")[2]), None)

    return script


def test_every_fault_that_passes_is_asked_again_and_no_failure_is_kept(tmp_path, no_waiting):
    with loopback(each_once(FAULTS)) as server, judge(tmp_path, server.base_url) as lab:
        replies = ask(lab, requests(20))
    for reply, request in zip(replies, requests(20), strict=True):
        wanted = completion({"messages": list(request.messages)})["choices"][0]["message"]["content"]
        assert reply.text == wanted
        assert (reply.finish, reply.served_model, reply.top_logprobs) == ("stop", MODEL, None)
    assert len(server.bodies) == 20 + len(FAULTS)
    assert server.answered == 20 + 2  # the empty one and the filtered one are whole replies too
    assert len(lines(tmp_path)) == 20


def test_a_call_without_a_reply_in_time_is_repeated(tmp_path, no_waiting):
    with loopback({1: HANGS}) as server, judge(tmp_path, server.base_url, timeout=1.5) as lab:
        replies = ask(lab, requests(3))
    assert None not in replies
    assert len(server.bodies) == 4


def test_a_server_that_does_not_reply_in_time_is_an_error_after_three_tries(tmp_path, no_waiting, capsys):
    def hangs(_, body):
        return HANGS if body["messages"][0]["content"].endswith(" 1.") else None

    with loopback(hangs) as server, judge(tmp_path, server.base_url, timeout=1.0, max_retries=8) as lab:
        with pytest.raises(InputError, match=r"1 of 3 calls failed \(question 1, turn 1: no reply within 1 s\)"):
            ask(lab, requests(3))
        assert len(server.bodies) == 2 + 3
    assert capsys.readouterr().err == (
        "judge lab: calls are tried again (1 so far): question 1, turn 1: no reply within 1 s\n"
    )


def test_the_number_of_retries_is_printed_at_most_once_a_minute(tmp_path, no_waiting, capsys, monkeypatch):
    faults = {place: Fault.status(429, f"wait,\n{KEY}") for place in range(3)}
    for seconds, wanted in ((0.0, 3), (60.0, 1)):
        monkeypatch.setattr("sftmix.evaluation.judge.calls.SECONDS_BETWEEN_LINES", seconds)
        with loopback(faults) as server, judge(tmp_path / str(seconds), server.base_url, concurrency=1) as lab:
            ask(lab, requests(2))
        told = capsys.readouterr().err.splitlines()
        assert len(told) == wanted
    assert told == [
        "judge lab: calls are tried again (1 so far): question 0, turn 1: status 429: wait, (the key)",
    ]


def test_what_is_there_is_not_asked_again_and_another_round_or_draw_is(tmp_path):
    with loopback() as server, judge(tmp_path, server.base_url) as lab:
        first = ask(lab, requests(5))
        assert ask(lab, requests(5)) == first
        assert len(server.bodies) == 5
        ask(lab, requests(6))
        assert len(server.bodies) == 6
        for changes in ({"round": 2}, {"draw": 1}, {"temperature": 1.0}, {"max_tokens": 99}, {"top_logprobs": 5}):
            before = len(server.bodies)
            ask(lab, requests(5, **changes))
            assert len(server.bodies) == before + 5
        ask(lab, requests(5, name="called otherwise"))
        assert len(server.bodies) == 31
    with loopback() as elsewhere, judge(tmp_path, elsewhere.base_url) as lab:  # the same model at another address
        assert [reply.text for reply in ask(lab, requests(5))] == [reply.text for reply in first]
        assert elsewhere.bodies == []


def test_the_same_request_twice_in_a_call_is_asked_once(tmp_path):
    with loopback() as server, judge(tmp_path, server.base_url) as lab:
        one, two = ask(lab, requests(1) * 2)
    assert one == two
    assert len(server.bodies) == 1


def test_a_record_has_the_models_the_usage_and_the_date(tmp_path):
    with loopback() as server, judge(tmp_path, server.base_url.replace("127", "user:pass@127")) as lab:
        ask(lab, requests(1, top_logprobs=5), template_sha256="abc")
    (record,) = map(json.loads, lines(tmp_path))
    assert record["requested_model"] == "a-judge"
    assert record["served_model"] == MODEL
    assert record["system_fingerprint"] == "fp_loopback"
    assert record["template_sha256"] == "abc"
    assert record["usage"] == {"prompt_tokens": 2, "completion_tokens": 9}
    assert (record["name"], record["judge"], record["round"], record["draw"]) == ("question 0, turn 1", "lab", 1, 0)
    assert set(record["top_logprobs"]) == {"m", "M"}
    assert record["date"].startswith("20")
    assert record["base_url"] == server.base_url
    assert server.bodies[0] == {
        "model": "a-judge",
        "messages": [{"role": "user", "content": "Rate answer 0."}],
        "temperature": 0.0,
        "max_tokens": 100,
        "logprobs": True,
        "top_logprobs": 5,
    }


def test_a_torn_last_line_loses_only_its_record(tmp_path):
    with loopback() as server:
        with judge(tmp_path, server.base_url) as lab:
            ask(lab, requests(4))
        file = tmp_path / "judgments-lab.jsonl"
        file.write_bytes(file.read_bytes()[:-40])
        for wanted in (5, 5):
            with judge(tmp_path, server.base_url) as lab:
                ask(lab, requests(4))
            assert len(server.bodies) == wanted
    assert len(lines(tmp_path)) == 4


def test_calls_are_made_at_the_same_time_and_never_more_than_allowed(tmp_path):
    with loopback(seconds=0.05) as server, judge(tmp_path, server.base_url, concurrency=8) as lab:
        ask(lab, requests(40))
    assert server.most_at_once == 8


def test_failed_calls_are_counted_and_only_they_are_repeated_by_the_same_command(tmp_path, no_waiting):
    def busy(_, body):
        return Fault.status(500, "overloaded") if body["messages"][0]["content"].endswith((" 3.", " 7.")) else None

    with loopback(busy) as server, judge(tmp_path, server.base_url, max_retries=2) as lab:
        with pytest.raises(InputError) as raised:
            ask(lab, requests(10))
        assert str(raised.value) == (
            "judge lab: 2 of 10 calls failed (question 3, turn 1: status 500: overloaded); "
            "run the same command again to repeat only these, or allow_partial=true scores the others"
        )
        assert len(server.bodies) == 8 + 2 * 3
        replies = ask(lab, requests(10), allow_partial=True)
        assert [place for place, reply in enumerate(replies) if reply is None] == [3, 7]
    with loopback() as server, judge(tmp_path, server.base_url) as lab:
        assert None not in ask(lab, requests(10))
        assert len(server.bodies) == 2


def test_a_reply_without_requested_log_probabilities_cannot_be_used(tmp_path, no_waiting):
    with loopback({1: WITHOUT_LOGPROBS}) as server, judge(tmp_path, server.base_url) as lab:
        replies = ask(lab, requests(3, top_logprobs=5))
        assert all(set(reply.top_logprobs) == {"m", "M"} for reply in replies)
        assert len(server.bodies) == 4
    with loopback(lambda *_: WITHOUT_LOGPROBS) as server, judge(tmp_path / "never", server.base_url) as lab:
        with pytest.raises(InputError, match=r"3 of 3 calls failed \(.*: a reply without log-probabilities\)"):
            ask(lab, requests(3, top_logprobs=5))
        assert len(server.bodies) == 3 * 3  # such replies are paid for
    assert lines(tmp_path / "never") == []


def test_a_reply_that_the_suite_cannot_count_is_asked_for_again_also_where_it_was_kept(tmp_path, no_waiting):
    texts = iter("no number|[[5]]|[[6]]".split("|"))

    def rated(reply):
        return None if "[[" in reply.text else "no rating"

    with loopback(text=lambda _: next(texts)) as server, judge(tmp_path, server.base_url) as lab:
        assert [r.text for r in ask(lab, requests(1), accepts=rated)] == ["[[5]]"]
        assert [r.text for r in ask(lab, requests(1), accepts=lambda r: None if "6" in r.text else "old")] == ["[[6]]"]
        assert [r.text for r in ask(lab, requests(1))] == ["[[6]]"]
        assert len(server.bodies) == 3


@pytest.mark.parametrize("changes", [{"model": "another"}, {}])
def test_a_judge_of_another_model_under_the_same_name_is_refused(tmp_path, changes):
    with loopback() as server, judge(tmp_path, server.base_url) as lab:
        ask(lab, requests(3))
    with loopback(model="loopback-next") as server, judge(tmp_path, server.base_url, **changes) as lab:
        with pytest.raises(InputError) as raised:
            ask(lab, requests(10))
        assert "judge.name=" in str(raised.value)
        assert f"judgments of {'a-judge' if changes else MODEL}" in str(raised.value)
        assert len(server.bodies) <= (0 if changes else 7)
        if not changes:
            assert None not in ask(lab, requests(3))  # what is there can still be read
    assert len(lines(tmp_path)) == 3


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault.status(401, f"Incorrect API key provided: {KEY}"), "refuses the key (status 401)"),
        (Fault.status(403, "no"), "refuses the key (status 403)"),
        (Fault.status(404, f"The model was shut down, {KEY}"), "status 404: The model was shut down, (the key)"),
        (Fault.status(400, "logprobs are\nnot supported"), "question 0, turn 1 (status 400: logprobs are\\nnot supp"),
        (Fault.status(429, "You exceeded", "insufficient_quota"), "the quota of the account is used up (status 429"),
    ],
)
def test_what_no_retry_mends_ends_at_once_in_one_line_without_the_key(tmp_path, fault, says):
    with loopback(lambda *_: fault) as server, judge(tmp_path, server.base_url, concurrency=1) as lab:
        with pytest.raises(InputError) as raised:
            ask(lab, requests(30))
        assert len(server.bodies) == 1
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("message", ["no", "maximum context length is 9 tokens"])
def test_one_request_that_the_server_calls_wrong_ends_all_unless_a_part_is_enough(tmp_path, message):
    def too_long(_, body):
        return Fault.status(400, message) if body["messages"][0]["content"].endswith(" 2.") else None

    with loopback(too_long) as server, judge(tmp_path, server.base_url, concurrency=1) as lab:
        with pytest.raises(InputError, match="question 2, turn 1"):
            ask(lab, requests(5))
        replies = ask(lab, requests(5), allow_partial=True)
        assert [reply is None for reply in replies] == [False, False, True, False, False]
        assert len(server.bodies) == 3 + 3


def test_a_server_that_is_down_is_asked_a_limited_number_of_times(tmp_path, no_waiting):
    with loopback(lambda *_: Fault.status(503)) as server, judge(tmp_path, server.base_url, max_retries=1) as lab:
        with pytest.raises(InputError, match="400 of 400 calls failed"):
            ask(lab, requests(400))
        assert len(server.bodies) <= 2 * (10 + 4)
    with judge(tmp_path, server.base_url, max_retries=1) as lab:
        with pytest.raises(InputError, match="no connection to http://127"):
            ask(lab, requests(400))
        assert ask(lab, requests(2), allow_partial=True) == [None, None]


def test_the_time_that_a_server_asks_for_is_waited(tmp_path, monkeypatch):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr("sftmix.evaluation.judge.calls.asyncio.sleep", sleep)
    with (
        loopback({0: Fault.status(429, wait=0.3)}) as server,
        judge(tmp_path, server.base_url) as lab,
    ):
        ask(lab, requests(1))
    assert waited == [0.3]
    with (
        loopback({0: Fault.status(429, wait=3600)}) as server,
        judge(tmp_path / "long", server.base_url) as lab,
        pytest.raises(InputError, match="the server asks to wait 3600 s"),
    ):
        ask(lab, requests(1))


def test_the_key_is_sent_and_never_written_or_shown(tmp_path, capfd, no_waiting):
    with loopback({1: Fault.status(500, KEY)}) as server, judge(tmp_path, server.base_url) as lab:
        ask(lab, requests(4), show_progress=True)
        assert server.keys[0] == f"Bearer {KEY}"
        assert KEY not in repr(vars(lab))
    assert KEY not in "".join(lines(tmp_path)) + "".join(capfd.readouterr())


def test_a_dry_run_sends_nothing_and_prints_calls_tokens_and_price(tmp_path):
    with loopback() as server:
        with judge(tmp_path, server.base_url, price=Price(2.0, 8.0, "2026-11-01")) as lab:
            ask(lab, requests(2))
            long = requests(10, messages=({"role": "user", "content": "x" * 400_000},))
            distinct = [r._replace(draw=i) for i, r in enumerate(long)]
            estimate = lab.estimate([*requests(2), *distinct, *distinct], 1_000)
            assert (estimate.calls, estimate.known) == (10, 2)
            assert (estimate.prompt_tokens, estimate.completion_tokens) == (1_000_000, 10_000)
            assert estimate.dollars == pytest.approx(2.08)
            assert estimate.in_words() == (
                "10 calls (2 more have replies already), about 1,000,000 prompt and 10,000 completion tokens, "
                "about $2.08 at the prices of 2026-11-01"
            )
        with judge(tmp_path, server.base_url) as lab:
            assert (
                lab.estimate(requests(3), 100)
                .in_words()
                .endswith(
                    "tokens, price unknown: set judge.price='{prompt: DOLLARS, completion: DOLLARS, date: DAY}' "
                    "(US dollars per million tokens)"
                )
            )
        assert len(server.bodies) == 2


def test_the_fake_judge_rates_by_the_request_only(tmp_path):
    with judge(tmp_path, None, name="fake") as fake:
        ratings = [reply.text.rpartition("[[")[2].rstrip("]") for reply in ask(fake, requests(200))]
        assert set(ratings) == {str(n) for n in range(1, 11)}
        letters = ask(fake, requests(200, top_logprobs=5))
        assert {reply.text for reply in letters} == {"m", "M"}
        for reply in letters:
            assert sum(2.718281828459045**x for x in reply.top_logprobs.values()) == pytest.approx(1)
            assert max(reply.top_logprobs, key=reply.top_logprobs.get) == reply.text
        assert {reply.text for reply in ask(fake, requests(20, max_tokens=1))} == {"m", "M"}
    with judge(tmp_path / "again", None, name="fake") as fake:
        again = [reply.text.rpartition("[[")[2].rstrip("]") for reply in ask(fake, requests(200)[::-1])]
    assert again == ratings[::-1]


def test_an_interrupt_ends_it_cleanly_and_what_came_is_kept(tmp_path):
    def interrupt(_, body):
        if body["messages"][0]["content"].endswith(" 20."):
            os.kill(os.getpid(), signal.SIGINT)

    with (
        loopback(interrupt, seconds=0.02) as server,
        pytest.raises(KeyboardInterrupt),
        judge(tmp_path, server.base_url) as lab,
    ):
        ask(lab, requests(100))
    there = len(lines(tmp_path))
    assert 20 - 4 <= there < 100
    assert len(server.bodies) <= there + 4  # four were under way
    with loopback() as server, judge(tmp_path, server.base_url) as lab:
        assert None not in ask(lab, requests(100))
    assert len(server.bodies) == 100 - there


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from judges import ask, judge, requests
try:
    with judge(Path(sys.argv[1]), sys.argv[2]) as lab:
        ask(lab, requests(100))
except KeyboardInterrupt:
    sys.exit(130)
"""


def ended_at(folder, server, number, sign):
    """Start the program, and send a signal once the journal has so many lines."""
    tests = str(ROOT / "tests")
    with subprocess.Popen([sys.executable, "-c", PROGRAM, folder, server.base_url, tests], stderr=subprocess.PIPE) as p:
        file = folder / "judgments-lab.jsonl"
        while p.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < number):
            time.sleep(0.005)
        os.kill(p.pid, sign)
        said = p.communicate(timeout=60)[1].decode()
    return p.returncode, said


@pytest.mark.slow
def test_killed_twice_and_interrupted_no_call_is_lost_and_none_that_is_kept_is_repeated(tmp_path):
    with loopback(seconds=0.02) as server:
        kept = 0
        for number, sign, code in ((20, signal.SIGKILL, -9), (50, signal.SIGKILL, -9), (80, signal.SIGINT, 130)):
            before = len(server.bodies)
            assert ended_at(tmp_path, server, number, sign) == (code, "")
            there = {json.loads(line)["name"] for line in lines(tmp_path)}
            assert max(kept, number) <= len(there) < 100
            asked = [body["messages"][0]["content"] for body in server.bodies[before:]]
            assert len(asked) == len(set(asked)) <= len(there) - kept + 4  # four were under way
            kept = len(there)
        with (tmp_path / "judgments-lab.jsonl").open("ab") as file:
            file.write(b'{"key": "torn')
        before = len(server.bodies)
        with judge(tmp_path, server.base_url) as lab:
            assert None not in ask(lab, requests(100))
        assert len(server.bodies) == before + 100 - kept
        with judge(tmp_path, server.base_url) as lab:
            ask(lab, requests(100))
        assert len(server.bodies) == before + 100 - kept
        keys = [json.loads(line)["key"] for line in lines(tmp_path)]
        assert len(keys) == len(set(keys)) == 100
