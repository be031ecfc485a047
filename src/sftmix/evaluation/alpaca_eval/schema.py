"""Settings of suite=alpaca_eval."""

from dataclasses import dataclass

from sftmix.config.fields import number, one_of, path_field


@dataclass(kw_only=True)
class AlpacaEvalConfig:
    """805 answers against those of a baseline (AlpacaEval-2)."""

    name: str
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
