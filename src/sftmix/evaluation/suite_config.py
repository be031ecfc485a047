"""What `eval.py` must know of a suite before the suite is imported: the base class of `evaluation/NAME/schema.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from sftmix.evaluation.schema import EvalConfig
    from sftmix.evaluation.target import Target


@dataclass(kw_only=True)
class SuiteConfig:
    """Settings of a suite. Each folder `evaluation/NAME` has one subclass in its schema.py.

    The folder's suite.py has `check(session, suite)`, which raises an InputError for what is missing before a model is
    loaded, and `evaluate(session, suite)`, which returns or yields each `Evaluation`: what was
    yielded is kept if the process is stopped.
    """

    name: str

    reads: ClassVar[frozenset[str]] = frozenset({"device"})  # Those settings of READ_BY_SOME that the suite reads
    in_all: ClassVar[bool] = False  # Whether suite=all runs it
    judgments_from: ClassVar[str | None] = None  # Setting that names existing judgments, which are scored
    answers_from: ClassVar[str | None] = None  # Setting that names existing answers
    needs_weights: ClassVar[bool] = False  # Whether the suite computes with the model also if a server answers
    prints_scores: ClassVar[bool] = False  # Whether the suite prints tables itself
    decimals: ClassVar[int] = 2  # Of the printed scores
    usage: ClassVar[Mapping[str, str]] = {}  # Arguments of eval.py, and what they evaluate
    notes: ClassVar[tuple[str, ...]] = ()  # What the reader of the scores must know

    @property
    def scores_judgments(self) -> bool:
        """Whether the suite scores existing judgments: neither a model nor a judge is asked."""
        return self.judgments_from is not None and getattr(self, self.judgments_from) is not None

    @property
    def has_answers(self) -> bool:
        """Whether the suite reads existing answers."""
        return self.answers_from is not None and getattr(self, self.answers_from) is not None

    @property
    def needs_run(self) -> bool:
        """Whether the suite evaluates the model that `run` names."""
        return not self.scores_judgments and not self.has_answers

    @property
    def needs_judge(self) -> bool:
        """Whether the suite asks a judge."""
        return "judge" in self.reads and not self.scores_judgments

    def computes_here(self, *, is_served: bool) -> bool:
        """Return whether the suite runs the model on a device of this machine.

        Args:
            is_served: Whether a server answers.
        """
        is_answered = "generate" in self.reads and not self.needs_weights
        needs_model = "device" in self.reads and not self.scores_judgments and not self.has_answers
        return needs_model and not (is_served and is_answered)

    def without_effect(self) -> Mapping[str, str]:
        """Return the settings of the suite that have no effect under its other settings, and why."""
        return {}

    def check_call(self, config: "EvalConfig") -> None:
        """Refuse settings of the call that do not fit the suite, before anything is read."""

    def why_left_out(self, target: "Target") -> str | None:
        """Return why `suite=all` cannot evaluate a model by this suite, or None."""
        return None
