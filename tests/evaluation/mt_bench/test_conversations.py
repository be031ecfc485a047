"""Two turns for each question and round: the second turn contains the first answer."""

import json

from sftmix.data.example import Message
from sftmix.evaluation.generators.answering import Answer
from sftmix.evaluation.mt_bench.conversations import Conversation, converse, kept_conversations
from sftmix.evaluation.mt_bench.embedded import embedded_bench
from sftmix.evaluation.mt_bench.scores import answer_rows, write_rows
from sftmix.evaluation.results import plain_name


class Echo:
    """Answers with what it was asked, last first, and keeps the prompts."""

    def __init__(self):
        self.settings = {"model": "echo"}
        self.prompts = []

    def generate(self, prompts, tell=None):
        self.prompts += prompts
        for place, prompt in reversed(list(enumerate(prompts))):
            text = f"{prompt.key}: {prompt.turns[-1].content}"
            yield place, Answer(text, "stop", 3, "0")


def converse_with(echo, folder, rounds=2):
    return converse(embedded_bench().questions, echo, folder, rounds=rounds, max_new_tokens=64, show_progress=False)


def test_the_second_turn_sees_what_was_answered_in_the_first_of_its_round(tmp_path):
    echo = Echo()
    found = converse_with(echo, tmp_path)
    assert len(found) == 10
    assert len(echo.prompts) == 20
    assert [(one.question.id, one.round) for one in found] == [(q, r) for r in (1, 2) for q in range(1, 6)]
    for one in found:
        first, second = (next(p for p in echo.prompts if p.key == f"{one.question.id}/turn {t}/round {one.round}")
                         for t in (1, 2))  # fmt: skip
        assert first.turns == (Message("user", one.question.turns[0]),)
        said = f"{first.key}: {one.question.turns[0]}"
        assert second.turns == (*first.turns, Message("assistant", said), Message("user", one.question.turns[1]))
        assert one.texts == (said, f"{second.key}: {one.question.turns[1]}")


def test_the_category_sets_the_temperature_of_both_turns(tmp_path):
    echo = Echo()
    converse_with(echo, tmp_path)
    found = {prompt.id: prompt.temperature for prompt in echo.prompts}
    assert found == {"1": 0.7, "2": 0, "3": 0, "4": 0, "5": 0.7}
    assert {prompt.max_new_tokens for prompt in echo.prompts} == {64}


def test_more_rounds_ask_for_the_new_rounds_only(tmp_path):
    before = converse_with(Echo(), tmp_path)
    echo = Echo()
    after = converse_with(echo, tmp_path, rounds=3)
    assert after[:10] == before
    assert {prompt.round for prompt in echo.prompts} == {3}


def test_answers_are_exported_as_fastchat_has_them_and_read_back(tmp_path):
    found = converse_with(Echo(), tmp_path)
    file = tmp_path / f"{plain_name('MT-Bench, first 5 of 80', 'answers')}.jsonl"
    assert file.name == "MT-Bench_first_5_of_80--answers.jsonl"
    rows = list(answer_rows(found, "echo"))
    assert [row["question_id"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["choices"] == [{"index": i, "turns": list(found[5 * i].texts)} for i in (0, 1)]
    assert rows[0]["model_id"] == "echo"
    write_rows(file, iter(rows))
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows


def kept(known, folder, rounds=2, max_new_tokens=64):
    questions = embedded_bench().questions
    return kept_conversations(questions, known, folder, rounds=rounds, max_new_tokens=max_new_tokens)


def test_what_a_folder_holds_is_known_without_asking_and_never_under_other_settings(tmp_path):
    found = converse_with(Echo(), tmp_path)
    assert kept({"model": "echo"}, tmp_path) == found
    more = kept({"model": "echo"}, tmp_path, rounds=3)
    assert more[:10] == found
    assert more[10:] == [(question, 3) for question in embedded_bench().questions]
    for others in (
        kept({"model": "other"}, tmp_path),
        kept({"model": "echo", "seed": 7}, tmp_path),
        kept({"model": "echo"}, tmp_path, max_new_tokens=65),
        kept({"model": "echo"}, tmp_path / "none"),
    ):
        assert not any(isinstance(one, Conversation) for one in others)


def test_a_conversation_of_which_the_second_turn_is_missing_is_not_there(tmp_path):
    found = converse_with(Echo(), tmp_path, rounds=1)
    (file,) = tmp_path.glob("answers-*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if '"3/turn 2/' not in line))
    assert kept({"model": "echo"}, tmp_path, rounds=1) == [*found[:2], (found[2].question, 1), *found[3:]]
