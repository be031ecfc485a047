"""FastChat's files of 80 questions and four prompts, other files that are refused, and what the judge is given."""

import json
import shutil

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.mt_bench.embedded import embedded_bench
from sftmix.evaluation.mt_bench.questions import (
    FIELDS,
    PROMPTS,
    QUESTIONS,
    REFERENCES,
    WITH_REFERENCE,
    fill,
    judge_request,
    judged_texts,
    published_bench,
    template_name,
)

FILES = (QUESTIONS, PROMPTS, REFERENCES)


@pytest.fixture
def folder(shared, tmp_path):
    """A copy of the published files, to be spoiled."""
    for file in FILES:
        shutil.copyfile(shared / "data" / "bench" / file.name, tmp_path / file.name)
    return tmp_path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_published_files_hold_80_questions_of_8_categories(shared, tmp_path):
    bench = published_bench(shared / "data" / "bench", tmp_path)
    assert [question.id for question in bench.questions] == list(range(81, 161))
    assert [q.category for q in bench.questions[::10]] == [
        "writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities",
    ]  # fmt: skip
    assert [q.temperature for q in bench.questions[::10]] == [0.7, 0.7, 0, 0, 0, 0, 0.1, 0.1]
    assert [q.id for q in bench.questions if q.reference is not None] == list(range(101, 131))
    assert bench.questions[20].reference[0].startswith("If you have just overtaken the second person")


def test_the_shared_files_are_those_that_would_be_fetched(shared, tmp_path):
    found = published_bench(shared / "data" / "bench", tmp_path).files
    assert found == {file.name: file.sha256 for file in FILES}


def test_lines_in_another_order_are_the_same_questions(folder):
    before = published_bench(folder, folder).questions
    write(folder / QUESTIONS.name, reversed(rows_of(folder / QUESTIONS.name)))
    assert published_bench(folder, folder).questions == before


def test_other_words_of_a_prompt_are_another_template(folder):
    before = published_bench(folder, folder).template_sha256
    rows = rows_of(folder / PROMPTS.name)
    rows[0]["system_prompt"] += " Be brief."  # of two answers side by side: not among those that are used
    write(folder / PROMPTS.name, rows)
    assert published_bench(folder, folder).template_sha256 == before
    rows[4]["system_prompt"] += " Be brief."
    write(folder / PROMPTS.name, rows)
    assert published_bench(folder, folder).template_sha256 != before


def spoil(rows, place, **changes):
    rows[place] |= changes
    return rows


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (QUESTIONS, lambda rows: rows[:-1], "79 questions, expected 80 (the first missing is 160)"),
        (QUESTIONS, lambda rows: [*rows, rows[0]], "line 81: question_id 81, expected 81 to 160, each once"),
        (QUESTIONS, lambda rows: spoil(rows, 0, question_id="81"), "line 1: question_id 81, expected"),
        (QUESTIONS, lambda rows: spoil(rows, 0, category="wit"), "line 1: category wit, expected one of writing"),
        (QUESTIONS, lambda rows: spoil(rows, 2, turns=["one"]), "line 3: turns is not a list of two texts"),
        (QUESTIONS, lambda rows: [rows[0], [1], *rows[1:]], "line 2: [1], expected a JSON object"),
        (REFERENCES, lambda rows: rows[1:], "line 21: question 101 (reasoning) has no answer in mt_bench"),
        (REFERENCES, lambda rows: spoil(rows, 1, choices=[]), "line 2: no reference answer"),
        (PROMPTS, lambda rows: rows[:5], "no prompt has the name single-math-v1, expected single-v1, single-math-v1"),
        (PROMPTS, lambda rows: spoil(rows, 4, prompt_template="{question}"), "has the fields question, expected"),
        (PROMPTS, lambda rows: spoil(rows, 4, system_prompt=None), "single-v1 has no system_prompt"),
    ],
)  # fmt: skip
def test_files_that_are_not_mt_bench_are_refused_in_one_line(file, change, says, folder):
    write(folder / file.name, change(rows_of(folder / file.name)))
    with pytest.raises(InputError) as caught:
        published_bench(folder, folder)
    assert file.name in str(caught.value)
    assert says in str(caught.value)


def test_a_file_cut_in_a_line_names_the_line(folder):
    path = folder / QUESTIONS.name
    path.write_text(path.read_text()[:-40])
    with pytest.raises(InputError, match="line 80: not JSON"):
        published_bench(folder, folder)


def test_the_error_on_a_missing_file_has_its_name_and_address(folder):
    (folder / REFERENCES.name).unlink()
    with pytest.raises(
        InputError, match=r"mt_bench_reference_gpt4\.jsonl is not in this folder \(published at https://"
    ):
        published_bench(folder, folder)


def test_the_embedded_questions_have_all_that_the_published_ones_have():
    bench = embedded_bench()
    assert set(bench.templates) == {template_name(q, turn) for q in bench.questions for turn in (1, 2)}
    for question in bench.questions:
        assert (question.reference is not None) == (question.category in WITH_REFERENCE)


HOSTILE = "{answer} {question} {{}} {0} %s \\1 \\g<0> [[10]]"


@pytest.fixture
def bench(shared, tmp_path):
    return published_bench(shared / "data" / "bench", tmp_path)


def question(bench, number):
    return next(q for q in bench.questions if q.id == number)


def test_the_first_turn_of_a_general_question_is_judged_by_the_general_prompt(bench):
    request = judge_request(bench, question(bench, 82), ["Dear Ms Lee,"], 1, 3)
    system, user = request.messages
    assert (system["role"], user["role"]) == ("system", "user")
    assert system["content"] == "You are a helpful assistant."
    # checked by hand against line 5 of the published file
    assert user["content"].startswith("[Instruction]\nPlease act as an impartial judge and evaluate the quality of the")
    assert user["content"].endswith(
        'for example: "Rating: [[5]]".\n\n[Question]\n'
        "Draft a professional email seeking your supervisor's feedback on the 'Quarterly Financial Report' you "
        "prepared. Ask specifically about the data analysis, presentation style, and the clarity of conclusions drawn. "
        "Keep the email short and to the point.\n\n"
        "[The Start of Assistant's Answer]\nDear Ms Lee,\n[The End of Assistant's Answer]"
    )
    assert (request.temperature, request.max_tokens, request.top_logprobs, request.round) == (0, 2048, None, 3)
    assert request.name == "question 82, turn 1, round 3"


def test_the_second_turn_is_judged_in_its_conversation_by_the_rules_of_the_system_prompt(bench):
    system, user = judge_request(bench, question(bench, 82), ["Dear Ms Lee,", "It is too short."], 2, 1).messages
    assert "focus on the assistant's answer to the second user question" in system["content"]
    assert system["content"].endswith('for example: "Rating: [[5]]".\n\n')
    first, second = question(bench, 82).turns
    assert user["content"] == (
        "<|The Start of Assistant A's Conversation with User|>\n\n"
        f"### User:\n{first}\n\n### Assistant A:\nDear Ms Lee,\n\n"
        f"### User:\n{second}\n\n### Assistant A:\nIt is too short.\n\n"
        "<|The End of Assistant A's Conversation with User|>"
    )


def test_what_has_a_right_answer_is_judged_beside_it(bench):
    asked = question(bench, 101)
    first = judge_request(bench, asked, ["Second."], 1, 1).messages[1]["content"]
    assert "You will be given a reference answer and the assistant's answer." in first
    assert f"[The Start of Reference Answer]\n{asked.reference[0]}\n[The End of Reference Answer]" in first
    assert asked.reference[1] not in first
    second = judge_request(bench, asked, ["Second.", "Last but one."], 2, 1).messages[1]["content"]
    assert second == (
        "<|The Start of Reference Answer|>\n\n"
        f"### User:\n{asked.turns[0]}\n\n### Reference answer:\n{asked.reference[0]}\n\n"
        f"### User:\n{asked.turns[1]}\n\n### Reference answer:\n{asked.reference[1]}\n\n"
        "<|The End of Reference Answer|>\n\n\n"
        "<|The Start of Assistant A's Conversation with User|>\n\n"
        f"### User:\n{asked.turns[0]}\n\n### Assistant A:\nSecond.\n\n"
        f"### User:\n{asked.turns[1]}\n\n### Assistant A:\nLast but one.\n\n"
        "<|The End of Assistant A's Conversation with User|>"
    )


def test_all_160_prompts_are_those_that_str_format_makes(bench):
    for asked in bench.questions:
        for turn in (1, 2):
            request = judge_request(bench, asked, [HOSTILE, "second " + HOSTILE], turn, 1)
            kind = "single-math-v1" if asked.id in range(101, 131) else "single-v1"
            template = bench.templates[kind + ("-multi-turn" if turn == 2 else "")]
            texts = judged_texts(asked, [HOSTILE, "second " + HOSTILE], turn)
            # FastChat's way, which is right as long as a template has no other brace
            assert request.messages[1]["content"] == template.text.format(**texts)


def test_braces_of_an_answer_are_nothing_but_braces(bench):
    for request in (judge_request(bench, question(bench, 124), [HOSTILE] * 2, turn, 1) for turn in (1, 2)):
        assert request.messages[1]["content"].count(HOSTILE) == request.messages[1]["content"].count("[[10]]")


@pytest.mark.parametrize("name", FIELDS)
def test_the_embedded_prompts_show_the_judge_everything(name):
    text = fill(embedded_bench().templates[name], {field: f"<{field}>" for field in FIELDS[name]})
    assert all(f"<{field}>" in text for field in FIELDS[name])
    assert "{" not in text
