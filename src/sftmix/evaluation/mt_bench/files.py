"""The files of MT-Bench as FastChat publishes them: questions, the judge's prompts, GPT-4's reference answers."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftmix.errors import InputError
from sftmix.evaluation.mt_bench.judging import FIELDS
from sftmix.evaluation.mt_bench.questions import NUM_TURNS, TEMPERATURES, WITH_REFERENCE, Bench, JudgePrompt, Question
from sftmix.evaluation.published import Published, locate

_DATA = "https://raw.githubusercontent.com/lm-sys/FastChat/v0.2.36/fastchat/llm_judge/data"
QUESTIONS = Published(
    "mt_bench_question.jsonl",
    f"{_DATA}/mt_bench/question.jsonl",
    "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
)
PROMPTS = Published(
    "mt_bench_judge_prompts.jsonl",
    f"{_DATA}/judge_prompts.jsonl",
    "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
)
REFERENCES = Published(
    "mt_bench_reference_gpt4.jsonl",
    f"{_DATA}/mt_bench/reference_answer/gpt-4.jsonl",
    "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
)
NAME = "MT-Bench"
_IDS = range(81, 161)


def published_bench(folder: Path | None, cache: Path) -> Bench:
    """MT-Bench from its files: in the given folder, else fetched into a cache.

    Raises:
        InputError: a file is absent, cannot be fetched, or does not hold what it should.
    """
    paths = {file.name: locate(file, folder, cache) for file in (QUESTIONS, PROMPTS, REFERENCES)}
    templates = read_templates(paths[PROMPTS.name])
    references = _read_references(paths[REFERENCES.name])
    questions = _read_questions(paths[QUESTIONS.name], references)
    return Bench(NAME, questions, templates, {name: _sha256(path) for name, path in paths.items()})


def read_templates(file: Path) -> dict[str, JudgePrompt]:
    """The four prompts by which one answer is judged, by name.

    Raises:
        InputError: one of them is absent, or has other fields than it is to have.
    """
    rows = {row.get("name"): (where, row) for where, row in read_rows(file)}
    templates = {}
    for name, fields in FIELDS.items():
        if name not in rows:
            raise InputError(f"{file}: no prompt is named {name}, expected {', '.join(FIELDS)}")
        where, row = rows[name]
        system, text = row.get("system_prompt"), row.get("prompt_template")
        if not isinstance(system, str) or not isinstance(text, str):
            raise InputError(f"{where}: {name} has no system_prompt and prompt_template, expected two texts")
        found = set(re.findall(r"\{(\w*)\}", text))
        if found != set(fields):
            has = ", ".join(sorted(found)) or "none"
            raise InputError(f"{where}: {name} has the fields {has}, expected {', '.join(fields)}")
        templates[name] = JudgePrompt(name, system, text)
    return templates


def read_rows(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows of a file of one JSON object a line, each with its place for messages.

    Raises:
        InputError: the file cannot be read, or a line holds something else.
    """
    rows: list[tuple[str, Mapping[str, Any]]] = []
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{file}, line {number}"
                row = json.loads(line) if line.strip() else {}
                if not isinstance(row, dict):
                    raise InputError(f"{where}: {line.strip()[:60]}, expected a JSON object")
                if row:
                    rows.append((where, row))
    except (OSError, UnicodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, line {number}: no JSON ({error.msg}), expected an object a line") from None
    return rows


def _read_questions(file: Path, references: Mapping[int, tuple[str, str]]) -> Sequence[Question]:
    questions: dict[int, Question] = {}
    for where, row in read_rows(file):
        number, category = row.get("question_id"), row.get("category")
        if not isinstance(number, int) or number not in _IDS or number in questions:
            raise InputError(f"{where}: question_id {number}, expected 81 to 160, each once")
        if not isinstance(category, str) or category not in TEMPERATURES:
            raise InputError(f"{where}: category {category}, expected one of {', '.join(TEMPERATURES)}")
        if category in WITH_REFERENCE and number not in references:
            raise InputError(f"{where}: question {number} is of {category}, but {REFERENCES.name} has no answer to it")
        reference = references[number] if category in WITH_REFERENCE else None
        questions[number] = Question(number, category, _two_texts(row.get("turns"), where, "turns"), reference)
    if len(questions) < len(_IDS):
        missing = next(number for number in _IDS if number not in questions)
        raise InputError(f"{file}: {len(questions)} questions, expected {len(_IDS)} (the first missing is {missing})")
    return [questions[number] for number in _IDS]  # whatever the order of the lines: a limit takes the same ones


def _read_references(file: Path) -> dict[int, tuple[str, str]]:
    references = {}
    for where, row in read_rows(file):
        try:
            references[row["question_id"]] = _two_texts(row["choices"][0]["turns"], where, "choices[0].turns")
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{where}: no reference answer, expected question_id and choices[0].turns") from None
    return references


def _two_texts(value: Any, where: str, name: str) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != NUM_TURNS or not all(isinstance(text, str) for text in value):
        raise InputError(f"{where}: {name} are not two texts, expected one a turn")
    return value[0], value[1]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
