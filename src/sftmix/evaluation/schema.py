"""Every name, type, unit and range of `eval.py`, as `sftmix.config.schema` has those of `train.py`."""

from dataclasses import dataclass, make_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from sftmix.config.fields import MAX_SEED, number, one_of, path_field
from sftmix.config.judge import JudgeConfig
from sftmix.evaluation.suite_config import SuiteConfig


def _suite_configs() -> dict[str, type[SuiteConfig]]:
    """Return the config class of each folder beside this file that has a schema.py, by the folder's name."""
    found: dict[str, type[SuiteConfig]] = {}
    for file in sorted(Path(__file__).parent.glob("*/schema.py")):
        module = import_module(f"sftmix.evaluation.{file.parent.name}.schema")
        [found[file.parent.name]] = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, SuiteConfig) and value is not SuiteConfig
        ]
    return found


SUITES = _suite_configs()
AllSuites: Any = make_dataclass(
    "AllSuites",
    [("name", str), *((name, config) for name, config in SUITES.items() if config.in_all)],
    kw_only=True,
    namespace={"__doc__": "Several suites, one after the other."},
)


@dataclass(kw_only=True)
class GenerateConfig:
    """What answers: hf, the model in this process; vllm, its engine in this process; openai, a server."""

    backend: str = one_of("hf", "openai", "vllm")  # (internal) what answers
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
    tensor_parallel_size: int = number(least=1)  # GPUs that share each weight
    gpu_memory_utilization: float = number(above=0, most=1)  # Fraction of the memory of each GPU that vLLM takes
    max_model_len: int | None = number(least=1)  # Most tokens of a prompt with its answer; null: the model's own


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
    devices: int | None = number(least=1)  # GPUs or CPU processes that share the questions; null: all visible GPUs
    dry_run: bool  # Print the number and price of the calls and ask nothing
    allow_partial: bool  # Score although judgments are missing
    progress_bar: bool  # Show a progress bar
    judge: JudgeConfig | None
    generate: GenerateConfig
    suite: Any  # (internal) a SuiteConfig, or AllSuites


def schema_of(suite: str) -> type[EvalConfig]:
    """Return the dataclass of a configuration with a suite of this name, or with `all`."""
    kind = AllSuites if suite == "all" else SUITES[suite]
    return make_dataclass("EvalConfig", [("suite", kind)], bases=(EvalConfig,), kw_only=True)
