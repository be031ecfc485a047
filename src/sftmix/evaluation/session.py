"""What the suites of one call of `eval.py` share: the model, loaded once on each device, the judge, the folders."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftmix.artifacts.files import open_lock
from sftmix.distributed.device import count_gpus, num_cores, why_torch_has_no_gpu
from sftmix.errors import ConfigError, InputError
from sftmix.evaluation.judge.journal import lock
from sftmix.evaluation.model_pool import ModelPool, ModelSource
from sftmix.evaluation.results import EVALUATION
from sftmix.evaluation.schema import EvalConfig
from sftmix.evaluation.servers import check_generate_server, check_vllm, server_of
from sftmix.evaluation.target import Target

if TYPE_CHECKING:
    from sftmix.evaluation.generators.answering import Generator
    from sftmix.evaluation.judge.judge import Judge

FETCHED = ".bench"
DEMO = "demo"


class Session:
    """One call of `eval.py` on one model. Nothing heavy is loaded before a suite needs it.

    Args:
        target: The model that is evaluated; None if existing files are scored.
    """

    def __init__(self, config: EvalConfig, target: Target | None) -> None:
        self.config, self._target = config, target

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """By suite, what its check has read and its evaluation needs."""
        return {}

    @property
    def target(self) -> Target:
        assert self._target is not None
        return self._target

    @property
    def is_demo(self) -> bool:
        """Whether the embedded questions are asked."""
        is_embedded = self._target is not None and self._target.is_embedded
        return self.config.bench == DEMO or (self.config.bench == "auto" and is_embedded)

    @property
    def bench(self) -> Path | None:
        """Folder with the published question files; None if they are fetched, or embedded questions are asked."""
        return None if self.config.bench in ("auto", DEMO) else Path(self.config.bench)

    @property
    def cache(self) -> Path:
        return Path(self.config.root) / FETCHED

    def folder(self, suite: str) -> Path:
        """Return the folder of a suite's answers and judgments, which is created if needed."""
        folder = self.target.folder / EVALUATION / suite
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def device(self) -> str:
        """The device as torch calls it, or raise an InputError if a GPU is requested and there is none."""
        found = count_gpus() > 0
        if self.config.device == "cuda" and not found:
            raise InputError("device=cuda: no CUDA device is visible, expected at least one")
        if not found or self.config.device == "cpu":
            return "cpu"
        if (why := why_torch_has_no_gpu()) is not None:
            raise InputError(f"device={self.config.device}: GPUs are visible, but {why}; or set device=cpu")
        return "cuda"

    @property
    def dtype(self) -> str:
        chosen = self.config.generate.dtype
        return chosen if chosen != "auto" else "bfloat16" if self.device == "cuda" else "float32"

    @cached_property
    def num_devices(self) -> int:
        """The number of devices that share the questions, or raise a ConfigError if there are not so many."""
        available = count_gpus() if self.device == "cuda" else num_cores()
        what = "visible GPUs" if self.device == "cuda" else "CPU cores"
        if self.config.devices is None:
            return available if self.device == "cuda" else 1
        if self.config.devices > available:
            raise ConfigError(f"devices={self.config.devices}: there are {available} {what}")
        return self.config.devices

    @cached_property
    def pool(self) -> ModelPool:
        """The model, on one device or a copy on each of several. Its weights are loaded when they are first used."""
        source = ModelSource(self.target.model, self.target.revision, self.dtype, self.device)
        return ModelPool(source, self.num_devices)

    @property
    def tokenizer(self) -> Any:
        return self.pool.tokenizer

    def close(self) -> None:
        """End the processes of the pool, and free the model of this process."""
        if "pool" in vars(self):
            self.pool.close()
            del self.pool
        generator = vars(self).pop("generator", None)
        if hasattr(generator, "close"):
            generator.close()

    @property
    def is_served(self) -> bool:
        """Whether a server or vLLM answers instead of the model of the pool."""
        return self.config.generate.backend != "hf"

    @cached_property
    def generator(self) -> "Generator":
        """The model of the pool, vLLM in this process, or the server that has the model."""
        generate, seed = self.config.generate, self.config.seed
        if generate.backend == "openai":
            from sftmix.evaluation.generators.server import ServerGenerator

            return ServerGenerator(server_of(generate), identity=self.target.identity, seed=seed)
        common: dict[str, Any] = {
            "identity": self.target.identity,
            "template_name": generate.template,
            "seed": seed,
        }
        if generate.backend == "vllm":
            from sftmix.evaluation.generators.vllm import VLLMGenerator

            return VLLMGenerator(
                self.pool,
                tensor_parallel_size=generate.tensor_parallel_size,
                gpu_memory_utilization=generate.gpu_memory_utilization,
                max_model_len=generate.max_model_len,
                **common,
            )
        from sftmix.evaluation.generators.hf import HFGenerator

        return HFGenerator(self.pool, batch_size=generate.batch_size, **common)

    def check_answering(self) -> None:
        """Refuse a missing chat template, and a server that cannot be called. The model is not read."""
        from sftmix.data.templates import choices, template_source

        generate = self.config.generate
        if generate.backend == "openai":
            check_generate_server(generate)
            return
        if generate.backend == "vllm":
            check_vllm(generate, count_gpus())
            _ = self.device
        else:
            _ = self.num_devices
        if generate.template is not None:
            template_source(generate.template, "generate.template")
        elif not self.tokenizer.chat_template:
            raise ConfigError(
                f"generate.template has no value and {self.target.name} has no chat template, expected {choices()}"
            )

    def known_settings(self) -> Mapping[str, Any]:
        """Return the settings of the generator that identify its answers, without loading the model."""
        if self.is_served:
            return self.generator.settings
        from sftmix.evaluation.generators.hf import known_settings

        return known_settings(
            self.tokenizer,
            identity=self.target.identity,
            template_name=self.config.generate.template,
            seed=self.config.seed,
            dtype=self.dtype,
            device=self.device,
        )

    def judge(self, suite: str) -> AbstractContextManager["Judge"]:
        """Open the judge of a suite's answers with its journal; in a dry run nothing is asked and nothing written."""
        from sftmix.evaluation.judge.cost import Price
        from sftmix.evaluation.judge.judge import open_judge

        judge = self.config.judge
        assert judge is not None
        return open_judge(
            self.folder(suite),
            judge.name,
            None if judge.backend == "fake" else server_of(judge),
            price=Price(**vars(judge.price)) if judge.price is not None else None,
            max_tokens=judge.max_tokens,
            to_estimate=self.config.dry_run,
        )

    @contextmanager
    def locked(self, suites: Iterable[str]) -> Iterator[None]:
        """Keep other processes from evaluating the same model by the same suites."""
        with ExitStack() as held:
            for suite in suites:
                file = self.folder(suite) / ".lock"
                lock(held.enter_context(open_lock(file)), file.parent)
            yield
