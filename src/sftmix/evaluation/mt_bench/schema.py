"""Settings of suite=mt_bench."""

from dataclasses import dataclass

from sftmix.config.fields import number, one_of, path_field


@dataclass(kw_only=True)
class MtBenchConfig:
    """Two turns of 80 questions, rated by a judge."""

    name: str
    rounds: int = number(least=1)  # Repetitions
    rounds_of: str = one_of("generation", "judge")  # What a repetition repeats
    max_new_tokens: int = number(least=1)  # Longest answer, in tokens
    as_fastchat: str | None = path_field()  # Judgments file of FastChat to score; nothing is asked
