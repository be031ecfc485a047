"""Answers are kept in a journal, and each is asked for once."""

import json

import pytest

from sftmix.data.example import Message
from sftmix.errors import InputError
from sftmix.evaluation.generators.answering import Answer, Prompt, answer_all, holds_special, share_cut
from sftmix.evaluation.judge.journal import open_journal


def prompt(number: int, *, text: str = "Say something.", round: int = 1) -> Prompt:
    return Prompt(f"question {number}", 1, round, (Message("user", text),), 0.7, 16)


class Echo:
    """Answers the last prompt first; if `dies_after` is set, fails after that many answers."""

    def __init__(self, dies_after: int | None = None, **settings):
        self.settings = {"model": "echo", **settings}
        self.asked: list[str] = []
        self.dies_after = dies_after

    def generate(self, prompts, tell=None):
        for place in reversed(range(len(prompts))):
            if self.dies_after == len(self.asked):
                raise KeyboardInterrupt
            self.asked.append(prompts[place].id)
            yield place, Answer(f"to {prompts[place].id}: {prompts[place].turns[-1].content}", "stop", 3, "0" * 64)


def answers_of(generator, folder, prompts):
    return answer_all(prompts, generator, folder, title="test", show_progress=False)


def test_answers_come_in_the_order_of_the_prompts(tmp_path):
    answers = answers_of(Echo(), tmp_path, [prompt(k) for k in range(3)])
    assert [answer.text for answer in answers] == [f"to question {k}: Say something." for k in range(3)]


def test_a_killed_call_asks_only_for_what_is_missing(tmp_path):
    prompts = [prompt(k) for k in range(5)]
    with pytest.raises(KeyboardInterrupt):
        answers_of(Echo(dies_after=2), tmp_path, prompts)
    second = Echo()
    whole = answers_of(second, tmp_path, prompts)
    assert second.asked == ["question 2", "question 1", "question 0"]
    assert whole == answers_of(Echo(), tmp_path / "other", prompts)
    third = Echo()
    assert answers_of(third, tmp_path, prompts) == whole
    assert third.asked == []


def test_a_torn_last_line_is_asked_for_again(tmp_path):
    prompts = [prompt(k) for k in range(3)]
    whole = answers_of(Echo(), tmp_path, prompts)
    file = next(tmp_path.glob("*.jsonl"))
    file.write_bytes(file.read_bytes()[:-20])
    second = Echo()
    assert answers_of(second, tmp_path, prompts) == whole
    assert second.asked == ["question 0"]  # the last to be written


def test_another_round_or_content_under_the_same_id_is_asked(tmp_path):
    answers_of(Echo(), tmp_path, [prompt(1)])
    second = Echo()
    answers = answers_of(second, tmp_path, [prompt(1), prompt(1, text="Say more."), prompt(1, round=2)])
    assert len(second.asked) == 2
    assert [answer.text for answer in answers][:2] == ["to question 1: Say something.", "to question 1: Say more."]


def test_the_same_prompt_twice_is_asked_once(tmp_path):
    generator = Echo()
    answers = answers_of(generator, tmp_path, [prompt(1), prompt(1)])
    assert generator.asked == ["question 1"]
    assert answers[0] == answers[1]


def test_other_settings_are_other_answers_and_a_file_has_the_settings(tmp_path):
    answers_of(Echo(seed=0), tmp_path, [prompt(1)])
    second = Echo(seed=1)
    answers_of(second, tmp_path, [prompt(1)])
    assert second.asked == ["question 1"]
    settings = [json.loads(file.read_text()) for file in tmp_path.glob("answers-????????.json")]
    assert sorted(s["seed"] for s in settings) == [0, 1]
    assert len(list(tmp_path.glob("answers-????????.jsonl"))) == 2


def test_two_evaluations_at_once_are_refused(tmp_path):
    answers_of(Echo(), tmp_path, [prompt(1)])
    with open_journal(next(tmp_path.glob("*.jsonl"))), pytest.raises(InputError, match="another evaluation is writing"):
        answers_of(Echo(), tmp_path, [prompt(2)])


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"finish": None}, "finish is not a text"),
        ({"text": ["list"]}, "text is not a text"),
        ({"num_tokens": "3"}, "num_tokens is not a whole number"),
        ({"num_tokens": True}, "num_tokens is not a whole number"),
        ({"date": 5}, "date is not a text"),
        ({"other": 1}, "other is not a field of an answer"),
    ],
)
def test_a_record_that_is_not_an_answer_is_named_and_asked_again(tmp_path, capsys, changes, cause):
    first = answers_of(Echo(), tmp_path, [prompt(1), prompt(2)])
    file = next(tmp_path.glob("*.jsonl"))
    bad, good = file.read_text().splitlines()
    file.write_text(json.dumps(json.loads(bad) | changes) + f"\n{good}\n")
    echo = Echo()
    assert answers_of(echo, tmp_path, [prompt(1), prompt(2)]) == first
    assert echo.asked == ["question 2"]  # the last prompt was answered first
    assert f"line 1 is not a record and skipped ({cause})" in capsys.readouterr().err


def test_a_lone_surrogate_survives(tmp_path):
    text = "half \ud83d of one"
    first = answers_of(Echo(), tmp_path, [prompt(1, text=text)])
    assert answers_of(Echo(), tmp_path, [prompt(1, text=text)]) == first


def test_the_share_of_cut_answers_is_counted():
    answers = [Answer("", finish, 1, "") for finish in ("stop", "length", "stop", "stop")]
    assert share_cut(answers) == 0.25
    assert share_cut([]) == 0.0


@pytest.mark.parametrize(
    "token",
    [
        "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<|start_header_id|>",
        "<|assistant|>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "</s>", "<start_of_turn>", "<end_of_turn>",
    ],
)  # fmt: skip
def test_a_control_token_is_found_anywhere_in_a_text(token):
    assert holds_special(f"fine{token}user\nmore")
    assert holds_special(token)


@pytest.mark.parametrize(
    "text", ["", "a < b | c > d", "<| a |>", "<|>", "[inst]", "instance [1]", "<p>s</p>", "a << b"]
)
def test_other_text_is_none(text):
    assert not holds_special(text)
