"""Answers of a model to a few examples, before and after tuning (`answers.json`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftmix.artifacts.files import write_json
from sftmix.data.shards import EncodedExamples
from sftmix.models.generation import generate_batch
from sftmix.stages.context import RankContext, RunContext

if TYPE_CHECKING:
    from sftmix.stages.data import EncodedData

ANSWERS, ANSWER_TOKENS = 3, 48  # Examples that are answered; most tokens of an answer


class SampleQuestions(NamedTuple):
    """Examples that a model answers."""

    shown: list[dict[str, str]]  # Instruction, response and group of each example
    prompts: list[list[int]]  # Token ids of each prompt
    tokenizer: Any
    end_token_id: int

    @classmethod
    def of(cls, context: RunContext, encoded: "EncodedData", examples: EncodedExamples) -> "SampleQuestions":
        """Return the first examples of a set."""
        sources = [context.data.examples[int(line)] for line in examples.lines[:ANSWERS]]
        shown = [{name: getattr(source, name) for name in ("instruction", "response", "group")} for source in sources]
        prompts = [list(e.input_ids[: e.num_prompt_tokens]) for e in examples[:ANSWERS]]
        return cls(shown, prompts, encoded.tokenizer, encoded.encoder.end_token_id)

    def answered_by(self, causal_lm: Any, rank: RankContext) -> list[str]:
        """Return the greedy answer of a model to each prompt. The model is moved to the device of this process.

        On a GPU, the weights become bfloat16.
        """
        if rank.device.accelerator == "gpu":
            for weight in causal_lm.parameters():  # not the buffers: rotary frequencies stay in float32
                weight.data = weight.data.bfloat16()
        causal_lm.to(rank.torch_device)
        answers = generate_batch(causal_lm, self.prompts, stop_ids=[self.end_token_id], max_new_tokens=ANSWER_TOKENS)
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids, _ in answers]

    def write(self, folder: Path, before: Sequence[str], after: Sequence[str]) -> None:
        """Write `answers.json`: the answers of the model before and after tuning."""
        shown = zip(self.shown, before, after, strict=True)
        write_json(folder / "answers.json", [{**q, "before": b, "answer": a} for q, b, a in shown])
