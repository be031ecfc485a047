"""Log-probabilities of answer letters by lm-eval, over prompts that are finished."""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from sftmix.data.templates import choices
from sftmix.data.vocabulary import check_prompts
from sftmix.errors import InputError
from sftmix.evaluation.medical.prompts import ANSWER, MedicalPrompt
from sftmix.evaluation.medical.questions import LETTERS

USUAL_TOKENS = 2048  # of a model that does not say how much it reads


class Scored(NamedTuple):
    """What a model gives the letters of a question.

    Attributes:
        logprobs: of each letter, natural.
        is_right: the right letter has the highest of them.
        is_right_free: the right letter has the highest of the whole vocabulary.
    """

    logprobs: tuple[float, ...]
    is_right: bool
    is_right_free: bool


class Scorer:
    """A model that lm-eval asks.

    Args:
        causal_lm: the model, in evaluation mode, on its device.
        tokenizer: its tokenizer.
        batch_size: prompts at a time.
        adds_bos: whether the BOS token is put before a prompt.

    Raises:
        InputError: the tokenizer joins the bracket and a letter into one token, so no letter can be scored.
    """

    def __init__(self, causal_lm: Any, tokenizer: Any, *, batch_size: int, adds_bos: bool) -> None:
        """Check the tokenizer and wrap the model."""
        from lm_eval.models.huggingface import HFLM

        self.tokenizer, self.adds_bos = tokenizer, adds_bos
        self._num_embeddings: int = causal_lm.get_input_embeddings().weight.shape[0]
        positions = getattr(causal_lm.config.get_text_config(), "max_position_embeddings", None)
        self.max_tokens: int = positions or USUAL_TOKENS
        self._check_border()
        with _silent():
            self._lm = HFLM(
                pretrained=causal_lm,
                tokenizer=tokenizer,
                batch_size=batch_size,
                max_length=self.max_tokens,
                add_bos_token=adds_bos,
            )

    def num_tokens(self, prompt: str) -> int:
        """Return the number of a prompt's tokens.

        Raises:
            InputError: If a token has no embedding.
        """
        ids = self._ids(prompt)
        check_prompts([ids], self.tokenizer, self._num_embeddings, "suite=medical: the model that is scored")
        return len(ids)

    def score(self, prompts: Sequence[MedicalPrompt]) -> list[Scored]:
        """The letters' log-probabilities, in the order of the prompts; every one of them has to fit."""
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

    def _check_border(self) -> None:
        before = self._ids(f"a \n {ANSWER}")
        for letter in LETTERS:
            ids = self._ids(f"a \n {ANSWER}{letter}")
            if ids[:-1] != before:
                raise InputError(
                    f"suite=medical: the model's tokenizer joins {ANSWER[-1]} and {letter} into one token, expected "
                    f"each answer's letter to be a token of its own"
                )


def task_of(table: Any) -> dict[str, Any]:
    """The task, as lm-eval takes it, over a table of prompt, choices and answer: no shots of its own, no delimiter."""
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
    """Whether a tokenizer puts its BOS token before a text, unasked."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def chat_renderer(tokenizer: Any, key: str) -> Callable[[str], str]:
    """A function that renders a user's message with the tokenizer's chat template, up to where the answer begins.

    Args:
        tokenizer: with its template.
        key: the setting that chose it, for messages.

    Raises:
        InputError: there is no template, or it cannot be rendered.
    """
    if not tokenizer.chat_template:
        raise InputError(f"{key}: the tokenizer has no chat template, expected {choices()}")

    def as_chat(text: str) -> str:
        turns = [{"role": "user", "content": text}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    try:
        as_chat("a")
    except Exception as error:  # a template is a program: anything can go wrong in it
        raise InputError(f"{key}: the chat template cannot be rendered ({' '.join(str(error).split())})") from None
    return as_chat


def _scored(sample: dict[str, Any], prompt: MedicalPrompt) -> Scored:
    if [text for text, _ in sample["arguments"]] != [prompt.text] * len(prompt.letters):
        raise RuntimeError(f"lm-eval scored another prompt than the one of question {prompt.id}")
    found = sample["filtered_resps"]
    return Scored(tuple(logprob for logprob, _ in found), sample["acc"] == 1.0, bool(found[prompt.answer][1]))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without lm-eval's notes and bars: they are of how it is called here, the same each time."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
