"""vLLM answers in this process: the prompts and end tokens of `HFGenerator`, continued by vLLM's offline engine."""

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from sftmix.errors import InputError, first_line
from sftmix.evaluation.generators.answering import Answer, Prompt, seed_of
from sftmix.evaluation.generators.fitting import Fitted, PromptFitter, template_sha256
from sftmix.evaluation.model_pool import ModelPool

CHUNK = 256  # prompts a call of the engine, as many as it runs at a time by default; a kill loses at most these


class VLLMGenerator:
    """A `Generator` on vLLM.

    The prompts are the token ids that `HFGenerator` makes. vLLM draws by the seed of each prompt. Its sums depend on
    what it computes at the same time, so a repetition can give another answer.

    Args:
        pool: The model, of which only the tokenizer and the config are read here. vLLM reads the weights.
        identity: Hash or commit of the weights.
        template_name: A shipped chat template or the path of a .jinja file; None for the tokenizer's own.
        tensor_parallel_size: Number of GPUs that share each weight.
        gpu_memory_utilization: Fraction of the memory of each GPU that vLLM takes.
        max_model_len: Most tokens of a prompt with its answer; None for the model's own.

    Raises:
        InputError: If there is no such template, the tokenizer has none, or no end token has an embedding.
    """

    def __init__(
        self,
        pool: ModelPool,
        *,
        identity: str,
        template_name: str | None,
        seed: int,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        max_model_len: int | None,
    ) -> None:
        self.prompts = PromptFitter(pool, template_name, seed=seed, max_positions=max_model_len)
        source, self._engine = pool.source, None
        self._engine_arguments: dict[str, Any] = {
            "model": source.path,
            "revision": source.revision,
            "dtype": source.dtype,
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "max_model_len": self.prompts.num_positions,
            "generation_config": "vllm",  # not the sampling defaults of the model's folder
            "seed": seed,
        }
        self.settings: Mapping[str, Any] = {
            "backend": "vllm",
            "vllm": version("vllm"),
            "model": identity,
            "template_sha256": template_sha256(self.prompts.tokenizer),
            "seed": seed,
            "dtype": source.dtype,
            "tensor_parallel_size": tensor_parallel_size,
            "max_model_len": max_model_len,
            "stop_ids": self.prompts.stop_ids,
        }

    def generate(self, prompts: Sequence[Prompt], tell: Callable[[str], object] = str) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each prompt and its answer, when a chunk of prompts is finished.

        Raises:
            InputError: If the template refuses a conversation, a token has no embedding, or vLLM cannot load the model
                or fails.
        """
        fitted = self.prompts.fit(prompts)
        yield from ((f.place, self.prompts.answer(f, [], "length")) for f in fitted if f.room == 0)
        asked = [f for f in fitted if f.room > 0]
        for start in range(0, len(asked), CHUNK):
            chunk = asked[start : start + CHUNK]
            tell(f"{len(chunk)} at a time")
            for f, (ids, finish) in zip(chunk, self._continued(chunk), strict=True):
                yield f.place, self.prompts.answer(f, ids, finish)

    def close(self) -> None:
        """End the engine and free its GPUs."""
        if self._engine is not None:
            self._engine.llm_engine.engine_core.shutdown()
            self._engine = None
            gc.collect()

    def _continued(self, chunk: Sequence[Fitted]) -> list[tuple[list[int], str]]:
        """Return the token ids of each answer, without a token that ended it, and why it ended: stop or length."""
        engine = self._engine = self._engine or self._started()
        from vllm import SamplingParams

        from sftmix.models.generation import is_greedy

        parameters = [
            SamplingParams(
                temperature=0.0 if is_greedy(f.temperature) else f.temperature,
                seed=seed_of(f.key),
                max_tokens=f.room,
                stop_token_ids=self.prompts.stop_ids,
                detokenize=False,
            )
            for f in chunk
        ]
        try:
            found = engine.generate([{"prompt_token_ids": f.ids} for f in chunk], parameters, use_tqdm=False)
        except Exception as error:  # a dozen types, by cause and version
            raise InputError(f"generate=vllm: {first_line(error)}; answers so far are kept") from error
        outputs = [request.outputs[0] for request in found]
        return [self._without_end(list(output.token_ids), output.finish_reason) for output in outputs]

    def _without_end(self, ids: list[int], finish: str) -> tuple[list[int], str]:
        if finish not in ("stop", "length"):
            raise InputError(f"generate=vllm: an answer ended by {finish}, expected stop or length")
        has_end = finish == "stop" and ids and ids[-1] in self.prompts.stop_ids
        return ids[:-1] if has_end else ids, finish

    def _started(self) -> Any:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # otherwise vLLM reports model and hardware to its authors
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import LLM

        print(f"model       {self._engine_arguments['model']}, vLLM {self.settings['vllm']}", flush=True)
        try:
            return LLM(**self._engine_arguments)
        except Exception as error:  # a dozen types, by cause and version
            cause = first_line(error)
            raise InputError(f"generate=vllm: vLLM cannot load {self._engine_arguments['model']} ({cause})") from error
