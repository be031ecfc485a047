"""What the suites of one call share: the model, loaded once, who judges, and where everything goes."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftmix.artifacts.files import open_lock
from sftmix.distributed.device import count_gpus
from sftmix.errors import InputError
from sftmix.evaluation.answering import SERVED, check_answering, make_generator
from sftmix.evaluation.judge.journal import lock
from sftmix.evaluation.judging import open_judge_of
from sftmix.evaluation.results import EVALUATION
from sftmix.evaluation.schema import EvalConfig
from sftmix.evaluation.target import Target

if TYPE_CHECKING:
    from sftmix.evaluation.generators.answers import Generator
    from sftmix.evaluation.judge.judge import Judge

FETCHED = ".bench"
DEMO = "demo"


class Session:
    """One call of `eval.py` on one model; nothing heavy is loaded before a suite wants it.

    Args:
        config: settings.
        target: what is evaluated, or None where files that are there are scored.
    """

    def __init__(self, config: EvalConfig, target: Target | None) -> None:
        self.config, self._target = config, target

    @property
    def target(self) -> Target:
        """What is evaluated."""
        assert self._target is not None
        return self._target

    @property
    def is_demo(self) -> bool:
        """Whether the embedded questions are asked."""
        is_embedded = self._target is not None and self._target.is_embedded
        return self.config.bench == DEMO or (self.config.bench == "auto" and is_embedded)

    @property
    def bench(self) -> Path | None:
        """The folder with the published question files; None where they are fetched, or embedded ones are asked."""
        return None if self.config.bench in ("auto", DEMO) else Path(self.config.bench)

    @property
    def cache(self) -> Path:
        """The folder of what was fetched."""
        return Path(self.config.root) / FETCHED

    def folder(self, suite: str) -> Path:
        """Where a suite keeps answers, judgments and what else it made, beside its results."""
        folder = self.target.folder / EVALUATION / suite
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def device(self) -> str:
        """What torch calls the device.

        Raises:
            InputError: a GPU is asked for and there is none.
        """
        found = count_gpus() > 0
        if self.config.device == "cuda" and not found:
            raise InputError("device=cuda: no CUDA device is visible, expected at least one")
        return "cuda" if found and self.config.device != "cpu" else "cpu"

    @property
    def dtype(self) -> str:
        """The precision that the model computes in."""
        chosen = self.config.generate.dtype
        return chosen if chosen != "auto" else "bfloat16" if self.device == "cuda" else "float32"

    @cached_property
    def model(self) -> tuple[Any, Any, str]:
        """The causal language model in evaluation mode, its tokenizer, and its device.

        Raises:
            InputError: it cannot be read.
        """
        from sftmix.models.export import DTYPES
        from sftmix.models.loading import load_causal_lm

        print(f"model       {self.target.model}, {self.dtype} on {self.device}", flush=True)
        causal_lm = load_causal_lm(self.target.model, self.target.revision)
        causal_lm = causal_lm.to(device=self.device, dtype=DTYPES[self.dtype]).eval()
        return causal_lm, self.tokenizer, self.device

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            InputError: it cannot be read.
        """
        from sftmix.models.tokenizer import load_tokenizer

        return load_tokenizer(self.target.model, self.target.revision, None)

    @cached_property
    def generator(self) -> "Generator":
        """Who answers: the model here, or the server that has it.

        Raises:
            InputError: the model cannot be read, or has no chat template.
        """
        return make_generator(self.config.generate, self.target, self.config.seed, lambda: self.model)

    def check_answering(self) -> None:
        """Refuse a template that is none, a model without one, and a server that cannot be called; no model is read.

        Raises:
            InputError: what is missing or wrong.
        """
        check_answering(self.config.generate, self.target, lambda: self.tokenizer)

    def known_settings(self) -> Mapping[str, Any]:
        """What is known of the generator's settings without the model: which answers that are there are its own.

        Raises:
            InputError: the tokenizer cannot be read, or there is no such template.
        """
        if self.config.generate.backend == SERVED:
            return self.generator.settings
        from sftmix.evaluation.generators.local import known_settings

        return known_settings(
            self.tokenizer,
            identity=self.target.identity,
            template_name=self.config.generate.template,
            seed=self.config.seed,
            dtype=self.dtype,
            device=self.device,
        )

    @contextmanager
    def judge(self, suite: str) -> Iterator["Judge"]:
        """The judge of a suite's answers, with what it said before."""
        assert self.config.judge is not None
        with open_judge_of(self.config.judge, self.folder(suite), to_estimate=self.config.dry_run) as judge:
            yield judge

    @contextmanager
    def alone(self, suites: Iterable[str]) -> Iterator[None]:
        """Keep other processes from evaluating the same model by the same suites, until this one has written.

        Raises:
            InputError: one of them does so already.
        """
        with ExitStack() as held:
            for suite in suites:
                file = self.folder(suite) / ".lock"
                lock(held.enter_context(open_lock(file)), file.parent)
            yield
