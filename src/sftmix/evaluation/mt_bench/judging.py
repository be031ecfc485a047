"""What the judge of MT-Bench is asked about an answer: published prompts, filled in."""

import re
from collections.abc import Mapping, Sequence

from sftmix.evaluation.judge.call import Request
from sftmix.evaluation.mt_bench.questions import Bench, JudgePrompt, Question, template_name

TEMPERATURE = 0.0  # FastChat's
MAX_TOKENS = 2048
FIELDS = {
    "single-v1": ("question", "answer"),
    "single-math-v1": ("question", "ref_answer_1", "answer"),
    "single-v1-multi-turn": ("question_1", "answer_1", "question_2", "answer_2"),
    "single-math-v1-multi-turn": (
        "question_1", "ref_answer_1", "question_2", "ref_answer_2", "answer_1", "answer_2",
    ),
}  # fmt: skip


def judge_request(bench: Bench, question: Question, answers: Sequence[str], turn: int, round: int) -> Request:
    """The request to rate the answer of a turn.

    Args:
        bench: has the prompts.
        question: what was asked.
        answers: the model's, up to this turn or further.
        turn: 1 or 2; with the second the judge sees the whole conversation.
        round: of the suite, counted from 1.
    """
    template = bench.templates[template_name(question, turn)]
    messages = (
        {"role": "system", "content": template.system},
        {"role": "user", "content": fill(template, judged_texts(question, answers, turn))},
    )
    name = f"question {question.id}, turn {turn}, round {round}"
    return Request(name, messages, round, TEMPERATURE, MAX_TOKENS)


def judged_texts(question: Question, answers: Sequence[str], turn: int) -> dict[str, str]:
    """What goes into the fields of a prompt for the judge."""
    if turn == 1:
        texts = {"question": question.turns[0], "answer": answers[0]}
    else:
        texts = {f"question_{i}": text for i, text in enumerate(question.turns, start=1)}
        texts |= {f"answer_{i}": text for i, text in enumerate(answers[:2], start=1)}
    if question.reference is not None:
        texts |= {f"ref_answer_{i}": text for i, text in enumerate(question.reference, start=1)}
    return texts


def fill(template: JudgePrompt, texts: Mapping[str, str]) -> str:
    """A prompt with its fields filled in, all in one pass: a brace inside an answer is nothing but a brace."""
    return re.sub(r"\{(\w+)\}", lambda field: texts[field.group(1)], template.text)
