"""Every name, type, unit and range of `eval.py`, as `sftmix.config.schema` has those of `train.py`."""

from dataclasses import dataclass, make_dataclass
from typing import Any

from sftmix.config.fields import MAX_SEED, checked, number, one_of, path_field

MEDICAL = ("MedQA", "MedQA-5", "PubMedQA", "MedMCQA")  # the columns of Table 2


@dataclass(kw_only=True)
class Medical:
    """Multiple choice, three-shot (Table 2)."""

    name: str
    benchmarks: list[str] = checked(
        lambda names: len(names) > 0 and len(set(names)) == len(names) and set(names) <= set(MEDICAL),
        f"some of {', '.join(MEDICAL)}, each once",
    )  # Benchmarks
    hub: dict[str, str] | None = path_field(
        holds=lambda sets: len(sets) > 0 and set(sets) <= set(MEDICAL),
        expected=f"a data set for some of {', '.join(MEDICAL)}: '{{MedQA: GBaker/MedQA-USMLE-4-options}}'",
    )  # Data sets of the hub, or folders, instead of the files: {MedQA: OWNER/NAME}
    num_shots: int = number(least=0)  # Solved examples in each prompt
    pool: str = one_of("train", "held_out")  # Where they come from
    rounds: int = number(least=1)  # Draws of them
    template: str | None = path_field()  # Chat template; null: none
    batch_size: int = number(least=1)  # Prompts of a batch


@dataclass(kw_only=True)
class MtBench:
    """Two turns of 80 questions, rated by a judge."""

    name: str
    rounds: int = number(least=1)  # Repetitions
    rounds_of: str = one_of("generation", "judge")  # What a repetition repeats
    max_new_tokens: int = number(least=1)  # Longest answer, in tokens
    as_fastchat: str | None = path_field()  # Judgments file of FastChat to score; nothing is asked


@dataclass(kw_only=True)
class AlpacaEval:
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


@dataclass(kw_only=True)
class Human:
    """Blind judging by people, side by side (section B.2)."""

    name: str
    annotators: int = number(least=1)  # Pages, one for each person
    max_new_tokens: int = number(least=1)  # Longest answer, in tokens
    judgments: list[str] | None = path_field()  # Files that the page has downloaded, to score


@dataclass(kw_only=True)
class Offline:
    """What needs no judge."""

    name: str
    num_train: int = number(least=2)  # Training examples for the gap to held-out loss
    num_answers: int = number(least=0)  # Held-out prompts to answer
    max_new_tokens: int = number(least=1)  # Longest answer, in tokens
    num_bins: int = number(least=2)  # Bins of the calibration error
    lams: list[float] = checked(
        lambda x: len(x) > 0 and all(0 < v < 1 for v in x), "numbers between 0 and 1"
    )  # Mixing ratios of the linearity test


@dataclass(kw_only=True)
class AllSuites:
    """One after the other."""

    name: str
    medical: Medical
    mt_bench: MtBench
    alpaca_eval: AlpacaEval
    offline: Offline


SUITES: dict[str, Any] = {
    "medical": Medical,
    "mt_bench": MtBench,
    "alpaca_eval": AlpacaEval,
    "human": Human,
    "offline": Offline,
    "all": AllSuites,
}


@dataclass(kw_only=True)
class Price:
    """Price of the judge, as in judge.price={prompt: 2, completion: 8, date: DAY}."""

    prompt: float = number(least=0)  # US dollars per million prompt tokens
    completion: float = number(least=0)  # US dollars per million answer tokens
    date: str  # Date of this price


@dataclass(kw_only=True)
class Judge:
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
    price: Price | None
    extra_body: dict[str, Any] | None  # Further fields of each request
    max_tokens: int | None = number(least=1)  # Tokens of a reply; null: the suite's (MT-Bench 2048, AlpacaEval 1)
    rename_parameters: dict[str, str] | None  # such as {max_tokens: max_completion_tokens}
    drop_parameters: list[str] | None  # Parameters that are not sent, such as [temperature]


@dataclass(kw_only=True)
class Generate:
    """Who answers: the model here, or a server."""

    backend: str = one_of("hf", "openai")  # hf: the model here; openai: a server
    template: str | None = path_field()  # null: the model's chat template; or a shipped one, or a .jinja file
    batch_size: int = number(least=1)  # Prompts of a batch
    dtype: str = one_of("auto", "float32", "bfloat16")  # Type of the weights
    model: str | None  # Name that the server knows
    base_url: str | None  # Address of the server
    api_key_env: str | None  # Environment variable that holds the key
    concurrency: int = number(least=1)  # Calls at a time
    max_retries: int = number(least=0)  # Repetitions of a call that failed
    timeout: float = number(above=0)  # Seconds for a call
    rename_parameters: dict[str, str] | None  # such as {max_tokens: max_completion_tokens}
    drop_parameters: list[str] | None  # Parameters that are not sent, such as [seed, top_p]


@dataclass(kw_only=True)
class EvalConfig:
    """The whole configuration of `eval.py`."""

    run: str | None = path_field()  # Run folder, Hugging Face folder or hub id; null: the newest run under root
    revision: str | None  # Commit of the hub id
    a: str | None = path_field()  # suite=human: first run, or file of answers
    b: str | None = path_field()  # suite=human: second run, or file of answers
    root: str = path_field(always=True)  # Folder of the runs
    bench: str = path_field()  # Folder with the question files; auto: they are fetched
    limit: int | None = number(least=1)  # Ask only the first questions
    seed: int = number(least=0, most=MAX_SEED)  # Seed of random draws
    device: str = one_of("auto", "cpu", "cuda")  # Where the model computes
    dry_run: bool  # Print the number and price of the calls and ask nothing
    allow_partial: bool  # Score although judgments are missing
    progress_bar: bool  # Show a progress bar
    judge: Judge | None
    generate: Generate
    suite: Any  # (internal) one of SUITES


def schema_of(suite: str) -> type[EvalConfig]:
    """The dataclass of a configuration whose suite is of this name."""
    return make_dataclass("EvalConfig", [("suite", SUITES[suite])], bases=(EvalConfig,), kw_only=True)
