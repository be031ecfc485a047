"""Prompts are those of BioMistral, and depend on question and round only."""

import hashlib
import random

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.medical.benchmarks import read_questions
from sftmix.evaluation.medical.embedded import embedded_questions
from sftmix.evaluation.medical.prompts import draw_shots, finished_prompt, prompt_text
from sftmix.evaluation.medical.questions import Item

ROW = Item("r", "One two three four.", "Is it?", ("yes", "no"), 1)
SHOTS = [Item(f"s{k}", None, f"Shot {k}?", (f"left {k}", f"right {k}"), k % 2) for k in range(3)]
PARTS = ("MedQA", "MedQA-5", "PubMedQA", "MedMCQA")


def test_the_prompt_is_biomistrals():
    assert prompt_text(ROW, SHOTS[:2]) == (
        "The following are multiple choice questions (with answers) about medical knowledge. \n "
        "**Question:** Shot 0? \n (A) left 0 \n (B) right 0 \n **Answer:**(A \n "
        "**Question:** Shot 1? \n (A) left 1 \n (B) right 1 \n **Answer:**(B \n "
        "One two three four. \n **Question:** Is it? \n (A) yes \n (B) no \n **Answer:**("
    )


def test_a_chat_template_is_around_all_but_the_answers_beginning():
    text = prompt_text(ROW, [], lambda asked: f"<user>{asked}<model>")
    assert text.startswith("<user>The following")
    assert text.endswith("(B) no<model>**Answer:**(")


def words(text):
    return len(text.split())


def finished(max_tokens, shots=SHOTS):
    return finished_prompt(ROW, shots, num_tokens=words, max_tokens=max_tokens)


def test_what_is_too_long_loses_shots_from_the_first_then_context_and_never_the_question():
    whole, none = words(prompt_text(ROW, SHOTS)), words(prompt_text(ROW, []))
    assert finished(whole).num_cut_shots == 0
    two = finished(whole - 1)
    assert (two.num_cut_shots, two.shots, two.text) == (1, ("s1", "s2"), prompt_text(ROW, SHOTS[1:]))
    assert finished(none).num_cut_shots == 3
    for cut in (1, 2, 3):
        prompt = finished(none - cut)
        assert (prompt.num_cut_words, prompt.fits) == (cut, True)
        assert prompt.text == prompt_text(ROW._replace(context=" ".join("One two three four.".split()[cut:])), [])
    assert finished(none - 4).text == prompt_text(ROW._replace(context=None), [])
    assert finished(none - 4).fits
    too_long = finished(none - 5)
    assert not too_long.fits
    assert "**Question:** Is it? \n (A) yes \n (B) no" in too_long.text


def test_a_pool_that_is_too_small_is_one_line():
    with pytest.raises(InputError, match=r"suite.num_shots=4: MedQA has 3 rows that may be shots"):
        draw_shots("MedQA", 1, "r", SHOTS, 4)


def test_shots_are_keyed_by_benchmark_round_and_question():
    pool = [Item(str(k), None, "?", ("a", "b"), 0) for k in range(100)]
    for benchmark, round, question in (("MedQA", 1, "x"), ("MedQA", 2, "x"), ("MedQA-5", 1, "x"), ("MedQA", 1, "y")):
        expected = random.Random(f"{benchmark}/{round}/{question}").sample(range(100), 3)
        assert [shot.id for shot in draw_shots(benchmark, round, question, pool, 3)] == [str(k) for k in expected]


def rendered(benchmark, questions, round, rows):
    """The hash of a prompt by the id of its question."""
    return {
        row.id: hashlib.sha256(
            prompt_text(row, draw_shots(benchmark, round, row.id, questions.pool, 3)).encode()
        ).hexdigest()
        for row in rows
    }


def test_the_twelve_prompt_files_are_the_same_for_any_limit_and_order(shared, tmp_path):
    differing = set()
    for benchmark in PARTS:
        questions = read_questions(benchmark, "held_out", shared / "data" / "bench", tmp_path)
        shuffled = random.Random(0).sample(questions.test, len(questions.test))
        ids = {row.id for row in questions.test}
        for round in (1, 2, 3):
            whole = rendered(benchmark, questions, round, questions.test)
            assert len(whole) == len(questions.test)
            assert rendered(benchmark, questions, round, questions.test[:50]).items() <= whole.items()
            if round == 1:
                assert rendered(benchmark, questions, round, shuffled) == whole
                assert not ids & {s.id for i in ids for s in draw_shots(benchmark, 1, i, questions.pool, 3)}
            differing.add(hashlib.sha256("".join(whole.values()).encode()).hexdigest())
    assert len(differing) == 12


def test_embedded_questions_have_four_options_and_other_shots():
    questions = embedded_questions()
    assert questions == embedded_questions()
    assert (len(questions.test), len(questions.pool)) == (100, 50)
    rows = [*questions.test, *questions.pool]
    assert all(len(set(row.options)) == 4 for row in rows)
    assert len({row.question for row in rows}) == len({row.id for row in rows}) == 150
    assert len({row.answer for row in questions.test}) == 4
