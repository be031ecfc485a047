"""Read MT-Bench as FastChat publishes it: questions, reference answers of GPT-4, and prompts of the judge."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.errors import InputError
from sftmix.evaluation.judge.requests import Request
from sftmix.evaluation.published import Published, locate, read_records

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
NUM_TURNS = 2
# FastChat's temperatures: answers of creative categories are drawn, those of exact categories are greedy
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
WITH_REFERENCE = frozenset({"math", "reasoning", "coding"})
JUDGE_TEMPERATURE = 0.0  # FastChat's
JUDGE_MAX_TOKENS = 2048
FIELDS = {
    "single-v1": ("question", "answer"),
    "single-math-v1": ("question", "ref_answer_1", "answer"),
    "single-v1-multi-turn": ("question_1", "answer_1", "question_2", "answer_2"),
    "single-math-v1-multi-turn": (
        "question_1", "ref_answer_1", "question_2", "ref_answer_2", "answer_1", "answer_2",
    ),
}  # fmt: skip


class Question(NamedTuple):
    """A question of two turns."""

    id: int  # 81 to 160
    category: str  # One of eight. It sets the temperature of the answers, and whether the judge sees a reference.
    turns: tuple[str, str]
    reference: tuple[str, str] | None  # A reference answer to each turn, if the category has them

    @property
    def temperature(self) -> float:
        """Temperature of the answers; 0 is greedy."""
        return TEMPERATURES[self.category]


class JudgePrompt(NamedTuple):
    """A prompt of the judge: published name, system message, and user message with fields in braces."""

    name: str
    system: str
    text: str


class Bench(NamedTuple):
    """Questions, the four prompts of the judge by name, and the SHA-256 of each file by name."""

    name: str
    questions: Sequence[Question]
    templates: Mapping[str, JudgePrompt]
    files: Mapping[str, str]

    @property
    def template_sha256(self) -> str:
        """Hash of the judge's prompts. A judge with other prompts counts as another judge."""
        return hashlib.sha256(json.dumps(sorted(self.templates.values())).encode()).hexdigest()


def template_name(question: Question, turn: int) -> str:
    """Return the name of the judge's prompt for the answer of turn 1 or 2."""
    kind = "single-math-v1" if question.category in WITH_REFERENCE else "single-v1"
    return kind if turn == 1 else f"{kind}-multi-turn"


def judge_request(bench: Bench, question: Question, answers: Sequence[str], turn: int, round: int) -> Request:
    """Return the request to rate the answer of turn 1 or 2. For turn 2, the judge sees the whole conversation."""
    template = bench.templates[template_name(question, turn)]
    messages = (
        {"role": "system", "content": template.system},
        {"role": "user", "content": fill(template, judged_texts(question, answers, turn))},
    )
    name = f"question {question.id}, turn {turn}, round {round}"
    return Request(name, messages, round, JUDGE_TEMPERATURE, JUDGE_MAX_TOKENS)


def judged_texts(question: Question, answers: Sequence[str], turn: int) -> dict[str, str]:
    """Return the texts for the fields of a prompt of the judge."""
    if turn == 1:
        texts = {"question": question.turns[0], "answer": answers[0]}
    else:
        texts = {f"question_{i}": text for i, text in enumerate(question.turns, start=1)}
        texts |= {f"answer_{i}": text for i, text in enumerate(answers[:2], start=1)}
    if question.reference is not None:
        texts |= {f"ref_answer_{i}": text for i, text in enumerate(question.reference, start=1)}
    return texts


def fill(template: JudgePrompt, texts: Mapping[str, str]) -> str:
    """Return a prompt with its fields filled in one pass, so that braces in an answer stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda field: texts[field.group(1)], template.text)


def published_bench(folder: Path | None, cache: Path) -> Bench:
    """Return MT-Bench from the files in a folder, or from fetched files in a cache if the folder is None.

    Raises:
        InputError: If a file is missing, cannot be fetched, or has wrong content.
    """
    paths = {file.name: locate(file, folder, cache) for file in (QUESTIONS, PROMPTS, REFERENCES)}
    templates = _read_prompts(paths[PROMPTS.name])
    references = _read_references(paths[REFERENCES.name])
    questions = _read_questions(paths[QUESTIONS.name], references)
    sha256 = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    return Bench(NAME, questions, templates, sha256)


def _read_prompts(file: Path) -> dict[str, JudgePrompt]:
    rows = {row.fields.get("name"): row for row in read_records(file)}
    templates = {}
    for name, fields in FIELDS.items():
        if name not in rows:
            raise InputError(f"{file}: no prompt has the name {name}, expected {', '.join(FIELDS)}")
        row = rows[name]
        system, text = row.fields.get("system_prompt"), row.fields.get("prompt_template")
        if not isinstance(system, str) or not isinstance(text, str):
            raise InputError(f"{row.where}: {name} has no system_prompt and prompt_template, expected two texts")
        found = set(re.findall(r"\{(\w*)\}", text))
        if found != set(fields):
            has = ", ".join(sorted(found)) or "none"
            raise InputError(f"{row.where}: {name} has the fields {has}, expected {', '.join(fields)}")
        templates[name] = JudgePrompt(name, system, text)
    return templates


def _read_questions(file: Path, references: Mapping[int, tuple[str, str]]) -> Sequence[Question]:
    questions: dict[int, Question] = {}
    for row in read_records(file):
        where, number, category = row.where, row.fields.get("question_id"), row.fields.get("category")
        if not isinstance(number, int) or number not in _IDS or number in questions:
            raise InputError(f"{where}: question_id {number}, expected 81 to 160, each once")
        if not isinstance(category, str) or category not in TEMPERATURES:
            raise InputError(f"{where}: category {category}, expected one of {', '.join(TEMPERATURES)}")
        if category in WITH_REFERENCE and number not in references:
            raise InputError(f"{where}: question {number} ({category}) has no answer in {REFERENCES.name}")
        reference = references[number] if category in WITH_REFERENCE else None
        questions[number] = Question(number, category, _two_texts(row.fields.get("turns"), where, "turns"), reference)
    if len(questions) < len(_IDS):
        missing = next(number for number in _IDS if number not in questions)
        raise InputError(f"{file}: {len(questions)} questions, expected {len(_IDS)} (the first missing is {missing})")
    return [questions[number] for number in _IDS]  # sorted, so that a limit takes the same questions from any file


def _read_references(file: Path) -> dict[int, tuple[str, str]]:
    references = {}
    for row in read_records(file):
        try:
            turns = row.fields["choices"][0]["turns"]
            references[row.fields["question_id"]] = _two_texts(turns, row.where, "choices[0].turns")
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{row.where}: no reference answer, expected question_id and choices[0].turns") from None
    return references


def _two_texts(value: Any, where: str, name: str) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != NUM_TURNS or not all(isinstance(text, str) for text in value):
        raise InputError(f"{where}: {name} is not a list of two texts, expected one for each turn")
    return value[0], value[1]
