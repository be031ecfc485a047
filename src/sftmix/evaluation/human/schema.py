"""Settings of suite=human."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sftmix.config.fields import number, path_field
from sftmix.errors import ConfigError
from sftmix.evaluation.suite_config import SuiteConfig

if TYPE_CHECKING:
    from sftmix.evaluation.schema import EvalConfig


@dataclass(kw_only=True)
class HumanConfig(SuiteConfig):
    """Blind judging by people, side by side (section B.2)."""

    reads: ClassVar[frozenset[str]] = frozenset({"device", "bench", "generate", "seed", "a", "b"})
    judgments_from: ClassVar[str | None] = "judgments"
    usage: ClassVar[Mapping[str, str]] = {
        "suite=human a=runs/ONE b=runs/OTHER": "a page for blind judging by people",
        "suite=human 'suite.judgments=[FILE,FILE]'": "the result of their judgments",
    }

    annotators: int = number(least=1)  # Pages, one for each person
    max_new_tokens: int = number(least=1)  # Longest answer, in tokens
    judgments: list[str] | None = path_field()  # Files that the page has downloaded, to score

    @property
    def needs_run(self) -> bool:
        return False  # its two models are `a` and `b`

    def check_call(self, config: "EvalConfig") -> None:
        for key in ("a", "b"):
            if self.judgments is None and getattr(config, key) is None:
                raise ConfigError(
                    f"{key} has no value, suite=human compares two: a=runs/ONE b=runs/OTHER, or files of answers"
                )
        if config.run is not None:
            raise ConfigError(f"run={config.run}: suite=human does not read it, its two models are a= and b=")
