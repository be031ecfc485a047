"""Every name, type, unit and range of `eval.py`, as `sftmix.config` has those of `train.py`."""

from dataclasses import dataclass, make_dataclass
from typing import Any

from sftmix.config import MAX_SEED, checked, number, one_of

MEDICAL = ("MedQA", "MedQA-5", "PubMedQA", "MedMCQA")  # the columns of Table 2


@dataclass(kw_only=True)
class Medical:
    """Multiple choice, three-shot (Table 2)."""

    name: str
    benchmarks: list[str] = checked(
        lambda names: len(names) > 0 and len(set(names)) == len(names) and set(names) <= set(MEDICAL),
        f"some of {', '.join(MEDICAL)}, each once",
    )
    hub: dict[str, str] | None = checked(
        lambda sets: len(sets) > 0 and set(sets) <= set(MEDICAL),
        f"a data set for some of {', '.join(MEDICAL)}: '{{MedQA: GBaker/MedQA-USMLE-4-options}}'",
    )  # rows in the published columns, read through datasets instead of the files
    num_shots: int = number(least=0)
    pool: str = one_of("train", "held_out")  # where shots are from
    rounds: int = number(least=1)  # draws of shots
    template: str | None  # None: no chat template, as BioMistral asks also tuned models
    batch_size: int = number(least=1)  # prompts


@dataclass(kw_only=True)
class MtBench:
    """Two turns of 80 questions, rated by a judge."""

    name: str
    rounds: int = number(least=1)
    rounds_of: str = one_of("generation", "judge")  # what a round repeats
    max_new_tokens: int = number(least=1)  # of an answer
    as_fastchat: str | None  # a judgments file of FastChat's form: re-scored by its own rule, nothing is asked


@dataclass(kw_only=True)
class AlpacaEval:
    """805 answers against those of a baseline (AlpacaEval-2)."""

    name: str
    rounds: int = number(least=1)
    temperature: float = number(least=0)  # of the answers
    max_new_tokens: int = number(least=1)  # of an answer
    scoring: str = one_of("logprob", "vote", "single")  # how a judge's reply becomes a preference
    votes: int = number(least=1)  # of scoring=vote
    outputs: str | None  # answers in AlpacaEval's form: nothing is generated
    baseline: str | None  # answers of the baseline
    gamed: str | None  # df_gamed.csv, for the length-controlled win rate
    prompt: str | None  # the judge's prompt template
    annotations: str | None  # judgments in AlpacaEval's form: re-scored, nothing is asked


@dataclass(kw_only=True)
class Human:
    """Blind judging by people, side by side (section B.2)."""

    name: str
    annotators: int = number(least=1)
    max_new_tokens: int = number(least=1)
    judgments: list[str] | None  # files that the page has downloaded: scored


@dataclass(kw_only=True)
class Offline:
    """What needs no judge."""

    name: str
    num_train: int = number(least=2)  # training examples of the train-to-held-out gap
    num_answers: int = number(least=0)  # held-out prompts that are answered, for length and repetition
    max_new_tokens: int = number(least=1)  # of an answer
    num_bins: int = number(least=2)  # of the calibration error
    lams: list[float] = checked(lambda x: len(x) > 0 and all(0 < v < 1 for v in x), "numbers between 0 and 1")


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
    """What a judge costs."""

    prompt: float = number(least=0)  # US dollars per million tokens
    completion: float = number(least=0)
    date: str  # on which that was so


@dataclass(kw_only=True)
class Judge:
    """Who rates answers."""

    name: str  # in results: no average is over judges of different names
    backend: str = one_of("openai", "fake")
    model: str | None  # as it is requested
    base_url: str | None  # None: OpenAI's
    api_key_env: str | None  # the environment variable that holds the key
    needs_key: bool
    refused: str | None  # why it cannot be had
    concurrency: int = number(least=1)  # calls at a time
    max_retries: int = number(least=0)  # of a call
    timeout: float = number(above=0)  # seconds a call
    price: Price | None
    extra_body: dict[str, Any] | None  # what a server requires beside the request
    max_tokens: int | None = number(least=1)  # of a reply; None: the suite's (MT-Bench 2048, AlpacaEval 1)
    rename_parameters: dict[str, str] | None  # such as {max_tokens: max_completion_tokens}
    drop_parameters: list[str] | None  # such as [temperature]: not sent


@dataclass(kw_only=True)
class Generate:
    """Who answers: the model here, or a server that has it."""

    backend: str = one_of("hf", "openai")
    template: str | None  # None: the model's own chat template; a shipped one, or a .jinja file
    batch_size: int = number(least=1)  # prompts
    dtype: str = one_of("auto", "float32", "bfloat16")
    model: str | None  # what the server calls it
    base_url: str | None
    api_key_env: str | None
    concurrency: int = number(least=1)
    max_retries: int = number(least=0)
    timeout: float = number(above=0)  # seconds a call
    rename_parameters: dict[str, str] | None  # such as {max_tokens: max_completion_tokens}
    drop_parameters: list[str] | None  # such as [seed, top_p]: not sent


@dataclass(kw_only=True)
class EvalConfig:
    """The whole configuration of `eval.py`."""

    run: str | None  # a run's folder, a Hugging Face folder or a hub id; None: the newest run under root
    revision: str | None  # commit of the hub id
    a: str | None  # of suite=human
    b: str | None
    root: str
    bench: str  # auto, demo, or a folder with the published files
    limit: int | None = number(least=1)  # the first questions of each benchmark
    seed: int = number(least=0, most=MAX_SEED)  # of draws
    device: str = one_of("auto", "cpu", "cuda")
    dry_run: bool  # say what judging would cost, and ask nothing
    allow_partial: bool  # score what is there
    progress_bar: bool
    judge: Judge | None
    generate: Generate
    suite: Any  # one of SUITES, by its name


def schema_of(suite: str) -> type[EvalConfig]:
    """The dataclass of a configuration whose suite is of this name."""
    return make_dataclass("EvalConfig", [("suite", SUITES[suite])], bases=(EvalConfig,), kw_only=True)
