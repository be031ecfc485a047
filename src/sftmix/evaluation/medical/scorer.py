"""Score the answer letters of finished prompts by lm-eval."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sftmix.data.templates import choices
from sftmix.data.vocabulary import check_prompts
from sftmix.errors import InputError
from sftmix.evaluation.medical.prompts import ANSWER, MedicalPrompt
from sftmix.evaluation.medical.questions import LETTERS

if TYPE_CHECKING:
    from sftmix.evaluation.lm_eval.model import JournaledLM

USUAL_TOKENS = 2048  # of a model that does not say how much it reads


class Scored(NamedTuple):
    """Scores of the letters of a question."""

    logprobs: tuple[float, ...]  # Natural log-probability of each letter
    is_right: bool  # Whether the right letter has the highest of them
    is_right_free: bool  # Whether the right letter has the highest of the whole vocabulary


class Scorer:
    """A model that lm-eval asks.

    Raises:
        InputError: If the tokenizer joins the bracket and a letter into one token, so no letter can be scored.
    """

    def __init__(self, lm: "JournaledLM") -> None:
        self.lm, self.max_tokens = lm, lm.options.max_length
        before = self._ids(f"a \n {ANSWER}")
        for letter in LETTERS:
            if self._ids(f"a \n {ANSWER}{letter}")[:-1] != before:
                raise InputError(
                    f"suite=medical: the model's tokenizer joins {ANSWER[-1]} and {letter} into one token, expected "
                    f"each answer's letter to be a token of its own"
                )
        self._num_embeddings: int = lm.pool.empty_model.get_input_embeddings().weight.shape[0]

    def num_tokens(self, prompt: str) -> int:
        """Return the number of a prompt's tokens, or raise an InputError if a token has no embedding."""
        ids = self._ids(prompt)
        check_prompts([ids], self.lm.tokenizer, self._num_embeddings, "suite=medical: the model that is scored")
        return len(ids)

    def score(self, prompts: Sequence[MedicalPrompt], title: str) -> list[Scored | None]:
        """Return the letters' scores, in the order of the prompts; None for a prompt that does not fit.

        Args:
            title: Title of the progress bar.
        """
        import datasets
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager

        from sftmix.evaluation.lm_eval.model import silent

        fitting = [prompt for prompt in prompts if prompt.fits]
        if not fitting:
            return [None for _ in prompts]
        self.lm.title = title
        with silent():
            table = datasets.Dataset.from_list(
                [{"prompt": p.text, "choices": list(p.letters), "answer": p.answer} for p in fitting]
            )
            task = TaskManager(include_defaults=False).load([task_of(table)])
            results = evaluate(self.lm, task, bootstrap_iters=0)
        assert results is not None
        (samples,) = results["samples"].values()
        by_place = {sample["doc_id"]: sample for sample in samples}
        found = iter([_scored(by_place[k], prompt) for k, prompt in enumerate(fitting)])
        return [next(found) if prompt.fits else None for prompt in prompts]

    def _ids(self, text: str) -> list[int]:
        add_bos = self.lm.options.add_bos_token
        return self.lm.tokenizer.encode(text, add_special_tokens=add_bos, verbose=False)  # it may be too long


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


def _scored(sample: dict[str, Any], prompt: MedicalPrompt) -> Scored:
    if [text for text, _ in sample["arguments"]] != [prompt.text] * len(prompt.letters):
        raise RuntimeError(f"lm-eval scored another prompt than the one of question {prompt.id}")
    found = sample["filtered_resps"]
    return Scored(tuple(logprob for logprob, _ in found), sample["acc"] == 1.0, bool(found[prompt.answer][1]))
