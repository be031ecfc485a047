"""Settings of suite=mt_bench."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sftmix.config.fields import number, one_of, path_field
from sftmix.errors import ConfigError
from sftmix.evaluation.suite_config import SuiteConfig

if TYPE_CHECKING:
    from sftmix.evaluation.schema import EvalConfig


@dataclass(kw_only=True)
class MtBenchConfig(SuiteConfig):
    """Two turns of 80 questions, rated by a judge."""

    reads: ClassVar[frozenset[str]] = frozenset({"device", "bench", "generate", "seed", "judge", "allow_partial"})
    in_all: ClassVar[bool] = True
    judgments_from: ClassVar[str | None] = "as_fastchat"
    usage: ClassVar[Mapping[str, str]] = {
        "run=runs/RUN suite=mt_bench judge=gpt41": "80 questions of two turns, rated 1 to 10; five rounds",
    }

    rounds: int = number(least=1)  # Repetitions
    rounds_of: str = one_of("generation", "judge")  # What a repetition repeats
    max_new_tokens: int = number(least=1)  # Longest answer, in tokens
    as_fastchat: str | None = path_field()  # Judgments file of FastChat to score; nothing is asked

    def without_effect(self) -> Mapping[str, str]:
        if self.as_fastchat is None:
            return {}
        return dict.fromkeys(("rounds", "rounds_of", "max_new_tokens"), "suite.as_fastchat is scored as it is")

    def check_call(self, config: "EvalConfig") -> None:
        if self.as_fastchat is not None and config.limit is not None:
            raise ConfigError(f"limit={config.limit}: suite.as_fastchat is scored as it is, no question is asked")
