"""The judge that rates answers: `eval.py` asks it, and `train.py mode=check` checks it."""

from dataclasses import dataclass
from typing import Any

from sftmix.config.fields import number, one_of


@dataclass(kw_only=True)
class PriceConfig:
    """Price of the judge, as in judge.price={prompt: 2, completion: 8, date: DAY}."""

    prompt: float = number(least=0)  # US dollars per million prompt tokens
    completion: float = number(least=0)  # US dollars per million answer tokens
    date: str  # Date of this price


@dataclass(kw_only=True)
class JudgeConfig:
    """The judge; choose judge=fake, gpt41 or openai_compatible."""

    name: str  # (internal) in results: scores of different judges are never averaged
    backend: str = one_of("openai", "fake")  # (internal) what answers
    model: str | None  # Name that the server knows
    base_url: str | None  # Address of the server; null: OpenAI's
    api_key_env: str | None  # Environment variable that holds the key
    needs_key: bool
    refused: str | None  # (internal) why it cannot be used
    concurrency: int = number(least=1)  # Calls at a time
    max_retries: int = number(least=0)  # Repetitions of a call that failed
    timeout: float = number(above=0)  # Seconds for a call
    price: PriceConfig | None
    extra_body: dict[str, Any] | None  # Further fields of each request
    max_tokens: int | None = number(least=1)  # Tokens of a reply; null: the suite's (MT-Bench 2048, AlpacaEval 1)
    rename_parameters: dict[str, str] | None  # such as {max_tokens: max_completion_tokens}
    drop_parameters: list[str] | None  # Parameters that are not sent, such as [temperature]
