"""Settings of suite=human."""

from dataclasses import dataclass

from sftmix.config.fields import number, path_field


@dataclass(kw_only=True)
class HumanConfig:
    """Blind judging by people, side by side (section B.2)."""

    name: str
    annotators: int = number(least=1)  # Pages, one for each person
    max_new_tokens: int = number(least=1)  # Longest answer, in tokens
    judgments: list[str] | None = path_field()  # Files that the page has downloaded, to score
