"""Score the answer letters of finished prompts by lm-eval; scores are kept question by question."""

import contextlib
import hashlib
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.data.templates import choices
from sftmix.data.vocabulary import check_prompts
from sftmix.errors import InputError
from sftmix.evaluation.judge.journal import open_journal
from sftmix.evaluation.medical.prompts import ANSWER, MedicalPrompt
from sftmix.evaluation.medical.questions import LETTERS
from sftmix.training.progress import progress_bar

USUAL_TOKENS = 2048  # of a model that does not say how much it reads
CHUNK = 32  # prompts that a kill can lose


class Scored(NamedTuple):
    """Scores of the letters of a question."""

    logprobs: tuple[float, ...]  # Natural log-probability of each letter
    is_right: bool  # Whether the right letter has the highest of them
    is_right_free: bool  # Whether the right letter has the highest of the whole vocabulary


class Scorer:
    """A model that lm-eval asks.

    Args:
        adds_bos: Whether the BOS token is put before a prompt.

    Raises:
        InputError: If the tokenizer joins the bracket and a letter into one token, so no letter can be scored.
    """

    def __init__(self, causal_lm: Any, tokenizer: Any, *, batch_size: int, adds_bos: bool) -> None:
        from lm_eval.models.huggingface import HFLM

        self.tokenizer, self.adds_bos = tokenizer, adds_bos
        self._num_embeddings: int = causal_lm.get_input_embeddings().weight.shape[0]
        positions = getattr(causal_lm.config.get_text_config(), "max_position_embeddings", None)
        self.max_tokens: int = positions or USUAL_TOKENS
        before = self._ids(f"a \n {ANSWER}")
        for letter in LETTERS:
            if self._ids(f"a \n {ANSWER}{letter}")[:-1] != before:
                raise InputError(
                    f"suite=medical: the model's tokenizer joins {ANSWER[-1]} and {letter} into one token, expected "
                    f"each answer's letter to be a token of its own"
                )
        with _silent():
            self._lm = HFLM(
                pretrained=causal_lm,
                tokenizer=tokenizer,
                batch_size=batch_size,
                max_length=self.max_tokens,
                add_bos_token=adds_bos,
            )

    def num_tokens(self, prompt: str) -> int:
        """Return the number of a prompt's tokens, or raise an InputError if a token has no embedding."""
        ids = self._ids(prompt)
        check_prompts([ids], self.tokenizer, self._num_embeddings, "suite=medical: the model that is scored")
        return len(ids)

    def score(self, prompts: Sequence[MedicalPrompt]) -> list[Scored]:
        """Return the letters' scores, in the order of the prompts; every prompt has to fit."""
        import datasets
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager

        with _silent():
            table = datasets.Dataset.from_list(
                [{"prompt": p.text, "choices": list(p.letters), "answer": p.answer} for p in prompts]
            )
            task = TaskManager(include_defaults=False).load([task_of(table)])
            results = evaluate(self._lm, task, bootstrap_iters=0)
        assert results is not None
        (samples,) = results["samples"].values()
        by_place = {sample["doc_id"]: sample for sample in samples}
        return [_scored(by_place[k], prompt) for k, prompt in enumerate(prompts)]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=self.adds_bos, verbose=False)  # it may be too long


def task_of(table: Any) -> dict[str, Any]:
    """Return the task for lm-eval over a table of prompt, choices and answer: no shots and no delimiter of lm-eval."""
    return {
        "task": "medical",
        "output_type": "multiple_choice",
        "custom_dataset": lambda **_: {"test": table},
        "test_split": "test",
        "doc_to_text": lambda row: row["prompt"],
        "doc_to_choice": lambda row: row["choices"],
        "doc_to_target": lambda row: row["answer"],
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def puts_bos(tokenizer: Any) -> bool:
    """Return whether a tokenizer puts its BOS token before a text by default."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def chat_renderer(tokenizer: Any, key: str) -> Callable[[str], str]:
    """Return a function that renders a user's message by the chat template, up to where the answer begins.

    Raises:
        InputError: If there is no template, or it cannot be rendered.
    """
    if not tokenizer.chat_template:
        raise InputError(f"{key}: the tokenizer has no chat template, expected {choices()}")

    def as_chat(text: str) -> str:
        turns = [{"role": "user", "content": text}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    try:
        as_chat("a")
    except Exception as error:  # a template is a program: anything can fail in it
        raise InputError(f"{key}: the chat template cannot be rendered ({' '.join(str(error).split())})") from None
    return as_chat


def score_round(
    prompts: Sequence[MedicalPrompt], scorer: Scorer, file: Path, *, title: str, show_progress: bool
) -> list[Scored | None]:
    """Return the scores of the prompts of one benchmark and round in their order; None for those that do not fit.

    Args:
        file: Journal of scores, which are not computed again. Its name has to be of everything that a score depends on
            beside the prompt.
    """
    with open_journal(file, _why_no_score) as journal:
        left = [p for p in prompts if p.fits and _key(p) not in journal]
        with progress_bar(len(left), title, " questions", hide=not show_progress or not left) as bar:
            for start in range(0, len(left), CHUNK):
                chunk = left[start : start + CHUNK]
                for prompt, scored in zip(chunk, scorer.score(chunk), strict=True):
                    record = {"id": prompt.id, "prompt_sha256": prompt.sha256, "shots": prompt.shots}
                    answer = {"answer": prompt.letters[prompt.answer], **scored._asdict()}
                    journal.append(_key(prompt), record | answer)
                bar.update(len(chunk))
        records = [journal[_key(p)] if p.fits else None for p in prompts]
    return [r if r is None else Scored(tuple(r["logprobs"]), r["is_right"], r["is_right_free"]) for r in records]


def prompts_sha256(prompts: Sequence[MedicalPrompt]) -> str:
    """Return one hash of prompts in their order."""
    return hashlib.sha256("".join(prompt.sha256 for prompt in prompts).encode()).hexdigest()


def chance_of_letters(prompts: Sequence[MedicalPrompt], scores: Sequence[Scored | None]) -> float:
    """Return the accuracy in percent of the chosen letters if they were dealt out to the questions at random.

    A model that knows nothing but prefers a letter is right as often as that letter is; that may be below one in four.
    """
    scored = [(p, s) for p, s in zip(prompts, scores, strict=True) if s is not None]
    picked = Counter(s.logprobs.index(max(s.logprobs)) for _, s in scored)
    right = Counter(p.answer for p, _ in scored)
    return 100 * sum(picked[k] * right[k] for k in picked) / max(1, len(scored) * len(prompts))


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


def _scored(sample: dict[str, Any], prompt: MedicalPrompt) -> Scored:
    if [text for text, _ in sample["arguments"]] != [prompt.text] * len(prompt.letters):
        raise RuntimeError(f"lm-eval scored another prompt than the one of question {prompt.id}")
    found = sample["filtered_resps"]
    return Scored(tuple(logprob for logprob, _ in found), sample["acc"] == 1.0, bool(found[prompt.answer][1]))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress lm-eval's notes and bars, which are the same at each call."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
