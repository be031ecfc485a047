"""Settings of suite=alpaca_eval."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sftmix.config.fields import number, one_of, path_field
from sftmix.evaluation.suite_config import SuiteConfig


@dataclass(kw_only=True)
class AlpacaEvalConfig(SuiteConfig):
    """805 answers against those of a baseline (AlpacaEval-2)."""

    reads: ClassVar[frozenset[str]] = frozenset({"device", "bench", "generate", "seed", "judge", "allow_partial"})
    in_all: ClassVar[bool] = True
    judgments_from: ClassVar[str | None] = "annotations"
    answers_from: ClassVar[str | None] = "outputs"
    usage: ClassVar[Mapping[str, str]] = {
        "run=runs/RUN suite=alpaca_eval judge=gpt41": "805 answers against a baseline's: WR and LC WR; five rounds",
        "suite=alpaca_eval suite.annotations=FILE": "scores of existing judgments, with suite.outputs=FILE "
        "suite.baseline=FILE suite.gamed=FILE",
    }

    rounds: int = number(least=1)  # Repetitions
    temperature: float = number(least=0)  # Temperature of the answers
    max_new_tokens: int = number(least=1)  # Longest answer, in tokens
    scoring: str = one_of("logprob", "vote", "single")  # How a reply of the judge becomes a preference
    votes: int = number(least=1)  # Votes under scoring=vote
    outputs: str | None = path_field()  # File of answers to judge; nothing is generated
    baseline: str | None = path_field()  # File of the baseline's answers; null: from bench
    gamed: str | None = path_field()  # df_gamed.csv, for the length-controlled win rate; null: from bench
    prompt: str | None = path_field()  # Prompt template of the judge; null: from bench
    annotations: str | None = path_field()  # File of judgments to score; nothing is asked

    def without_effect(self) -> Mapping[str, str]:
        answering = ("temperature", "max_new_tokens")
        if self.annotations is not None:
            return dict.fromkeys(("rounds", "scoring", "votes", *answering), "suite.annotations are scored as they are")
        found = {} if self.scoring == "vote" else {"votes": f"suite.scoring={self.scoring} asks once for each pair"}
        if self.outputs is not None:
            found |= dict.fromkeys(answering, "the answers in suite.outputs exist already")
            found |= {"rounds": "suite.outputs holds one round"} if self.rounds != 1 else {}
        return found
