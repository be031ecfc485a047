"""A round of a benchmark: what was scored is kept question by question, and not scored again."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftmix.evaluation.judge.journal import open_journal
from sftmix.evaluation.medical.prompts import MedicalPrompt
from sftmix.evaluation.medical.scorer import Scored, Scorer
from sftmix.training.progress import progress_bar

CHUNK = 32  # prompts that a kill can lose


def score_round(
    prompts: Sequence[MedicalPrompt], scorer: Scorer, file: Path, *, title: str, show_progress: bool
) -> list[Scored | None]:
    """The scores of prompts in their order, from the journal where it has them; None for those that do not fit.

    Args:
        prompts: of one benchmark and round.
        scorer: who scores what is not there.
        file: the journal; its name has to tell apart everything that a score depends on beside the prompt.
        title: of the progress bar.
        show_progress: whether there is one.

    Raises:
        InputError: another process writes the journal, or it cannot be read.
    """
    with open_journal(file, _why_no_score) as journal:
        left = [p for p in prompts if p.fits and _key(p) not in journal]
        bar = progress_bar(len(left), title, " questions", hide=not show_progress or not left)
        with bar:
            for start in range(0, len(left), CHUNK):
                chunk = left[start : start + CHUNK]
                for prompt, scored in zip(chunk, scorer.score(chunk), strict=True):
                    record = {"id": prompt.id, "prompt_sha256": prompt.sha256, "shots": prompt.shots}
                    answer = {"answer": prompt.letters[prompt.answer], **scored._asdict()}
                    journal.append(_key(prompt), record | answer)
                bar.update(len(chunk))
        return [_of(journal[_key(p)]) if p.fits else None for p in prompts]


def prompts_sha256(prompts: Sequence[MedicalPrompt]) -> str:
    """One hash of prompts in their order."""
    return hashlib.sha256("".join(prompt.sha256 for prompt in prompts).encode()).hexdigest()


def chance_of_letters(prompts: Sequence[MedicalPrompt], scores: Sequence[Scored | None]) -> float:
    """The accuracy in percent that the letters which were picked would have without regard to the questions.

    A model that knows nothing but prefers a letter is right as often as that letter is; that may be below one in four.
    """
    scored = [(p, s) for p, s in zip(prompts, scores, strict=True) if s is not None]
    picked = Counter(s.logprobs.index(max(s.logprobs)) for _, s in scored)
    right = Counter(p.answer for p, _ in scored)
    return 100 * sum(picked[k] * right[k] for k in picked) / max(1, len(scored) * len(prompts))


def wilson_interval(accuracy: float, num_questions: int) -> tuple[float, float]:
    """The 95% interval, from low to high, of an accuracy in percent over so many questions (Wilson, from scipy).

    Of a mean over rounds it is the interval of one of them: rounds ask the same questions, so they do not add any.
    """
    from scipy.stats import binomtest

    right = round(accuracy / 100 * num_questions)
    low, high = binomtest(right, num_questions).proportion_ci(0.95, "wilson")
    return 100 * float(low), 100 * float(high)


def _key(prompt: MedicalPrompt) -> str:
    return f"{prompt.id}/{prompt.sha256[:16]}"


def _why_no_score(record: Mapping[str, Any]) -> str | None:
    """Return why a line of a journal is not a score, or None."""
    logprobs = record.get("logprobs")
    if not isinstance(logprobs, list) or not logprobs or not all(isinstance(x, int | float) for x in logprobs):
        return "logprobs are not numbers"
    if not all(isinstance(record.get(name), bool) for name in ("is_right", "is_right_free")):
        return "is_right and is_right_free are not true or false"
    return None


def _of(record: dict[str, Any]) -> Scored:
    return Scored(tuple(record["logprobs"]), record["is_right"], record["is_right_free"])
