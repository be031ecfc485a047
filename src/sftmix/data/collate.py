"""Build the tensors of a step: the input of the model body, and the positions on which the head runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sftmix.data.encoding import EncodedExample
from sftmix.data.layout import BodyInput, lay_out, split_into_microbatches
from sftmix.data.pairing import Step
from sftmix.functional.equations import num_mixed_tokens


@dataclass(frozen=True)
class BatchSettings:
    """How the tensors of a step are laid out.

    Attributes:
        layout: padded, grouped, or packed.
        micro_batch_tokens: Maximum number of tokens of a micro-batch. A pair is never divided, even if it is longer.
        pad_token_id: Token that fills up shorter sequences.
        prompt_weight: Weight of the loss on prompt tokens. If 0, prompt tokens carry no loss.
    """

    layout: str
    micro_batch_tokens: int
    pad_token_id: int
    prompt_weight: float = 0.0


class MicroBatch(NamedTuple):
    """Some examples of a step, as one backward pass takes them.

    Position t of a sequence predicts token t + 1. The head runs only on the positions that predict tokens which carry
    loss. They are ordered as the loss expects them: the P mixed positions of the confident examples, the P positions
    of their partners, then all others.

    Attributes:
        inputs: Inputs of the body, each for one forward pass.
        positions: Positions that predict tokens which carry loss, as indices into the flattened inputs.
        labels: Token that each position predicts.
        weights: Weight of each position in next-token prediction: the weight of its example, times the prompt weight
            if it predicts a prompt token.
        example_of_position: Index of the example of each position, counted within the micro-batch.
        lam: lam of each of the P mixed positions.
        examples: Index of each example in the data set. Empty for scoring and validation.
        spans: Start and length of each example in the flattened inputs. Empty for scoring and validation.
        index_in_step: Index of each example in the whole step, over all ranks. Empty for scoring and validation.
        num_pairs: Number of pairs. The first examples are the confident ones, followed by their partners.
        num_response_positions: Number of positions that predict response tokens. They precede those of prompt tokens.
    """

    inputs: tuple[BodyInput, ...]
    positions: Int[Tensor, " position"]
    labels: Int[Tensor, " position"]
    weights: Float[Tensor, " position"]
    example_of_position: Int[Tensor, " position"]
    lam: Float[Tensor, " mixed"]
    num_examples: int
    examples: tuple[int, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    index_in_step: Int[Tensor, " example"] = torch.empty(0, dtype=torch.long)
    num_pairs: int = 0
    num_response_positions: int = 0


class StepBatch(NamedTuple):
    """The micro-batches of one rank in one optimizer step, and counts of the whole step, equal on every rank.

    Attributes:
        micro_batches: At least one, the same number on every rank. One may be empty.
        num_tokens: N, the number of response tokens. If prompts carry loss, N includes their tokens from the second on.
        num_mixed: Number of mixed positions.
        num_examples: Number of examples.
        ntp_weight: Sum of the weights of the tokens that N counts.
        num_input_tokens: Number of tokens of prompts and responses, without padding.
        lam_mean: Mean lam of the pairs; NaN without pairs.
        lam: lam of each pair, on whichever rank the pair is.
    """

    micro_batches: tuple[MicroBatch, ...]
    num_tokens: int
    num_response_tokens: int
    num_mixed: int
    num_examples: int
    ntp_weight: float
    num_input_tokens: int
    lam_mean: float
    lam: tuple[float, ...]


def collate_step(
    step: Step,
    encoded: Sequence[EncodedExample],
    weights: Sequence[float],
    settings: BatchSettings,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> StepBatch:
    """Return the tensors of a step for one rank.

    Args:
        step: Examples of the step, as indices into `encoded`.
        weights: Weight of each example in next-token prediction.
    """
    examples = {i: encoded[i] for i in step.examples}
    lengths = {i: len(example.input_ids) for i, example in examples.items()}
    num_response = {i: example.num_response_tokens for i, example in examples.items()}
    num_prompt = {i: example.num_prompt_tokens - 1 if settings.prompt_weight else 0 for i, example in examples.items()}
    micro_batches = split_into_microbatches(
        step,
        lengths,
        micro_batch_tokens=settings.micro_batch_tokens,
        padded=settings.layout == "padded",
        world_size=world_size,
    )
    index_in_step = {i: k for k, i in enumerate(step.examples)}
    collated = (_collate(micro_batch, examples, weights, settings) for micro_batch in micro_batches[rank])
    return StepBatch(
        tuple(
            micro._replace(index_in_step=torch.tensor([index_in_step[i] for i in micro.examples], dtype=torch.long))
            for micro in collated
        ),
        num_tokens=sum(num_response.values()) + sum(num_prompt.values()),
        num_response_tokens=sum(num_response.values()),
        num_mixed=sum(
            num_mixed_tokens(num_response[c], num_response[u])
            for c, u in zip(step.confident, step.unconfident, strict=True)
        ),
        num_examples=len(step.examples),
        ntp_weight=sum(weights[i] * (num_response[i] + settings.prompt_weight * num_prompt[i]) for i in step.examples),
        num_input_tokens=sum(lengths.values()),
        lam_mean=sum(step.lam) / len(step.lam) if step.lam else float("nan"),
        lam=step.lam,
    )


def collate_dialogues(dialogues: Sequence[Sequence[EncodedExample]], layout: str, pad_token_id: int) -> MicroBatch:
    """Return unpaired examples as one micro-batch, in their order: for scoring and validation.

    Args:
        dialogues: Examples that share a sequence. The ids of each example are a prefix of the ids of the next one.
    """
    inputs, starts = lay_out([turns[-1].input_ids for turns in dialogues], layout, pad_token_id)
    positions: list[int] = []
    labels: list[int] = []
    counts: list[int] = []
    for start, turns in zip(starts, dialogues, strict=True):
        for turn in turns:
            positions += range(start + turn.num_prompt_tokens - 1, start + len(turn.input_ids) - 1)
            labels += turn.input_ids[turn.num_prompt_tokens :]
            counts.append(turn.num_response_tokens)
    return MicroBatch(
        inputs,
        positions=torch.tensor(positions, dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        weights=torch.ones(len(positions), dtype=torch.float64),
        example_of_position=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long)),
        lam=torch.empty(0, dtype=torch.float64),
        num_examples=len(counts),
        num_response_positions=len(positions),
    )


def _collate(
    step: Step, encoded: Mapping[int, EncodedExample], weights: Sequence[float], settings: BatchSettings
) -> MicroBatch:
    # An empty micro-batch still runs the body because other ranks wait for it in a collective operation.
    sequences = [encoded[i].input_ids for i in step.examples] or [(settings.pad_token_id,)]
    inputs, starts = lay_out(sequences, settings.layout, settings.pad_token_id)
    num_pairs = len(step.lam)
    prompts = [encoded[i].num_prompt_tokens for i in step.examples]
    counts = [encoded[i].num_response_tokens for i in step.examples]
    mixed = [num_mixed_tokens(counts[k], counts[num_pairs + k]) for k in range(num_pairs)]
    mixed_of = mixed + mixed + [0] * len(step.unpaired)
    # Consecutive tokens that carry loss (example, start, stop, weight): mixed, other response, and prompt tokens.
    segments = [(k, prompts[k], prompts[k] + mixed_of[k], weights[i]) for k, i in enumerate(step.examples)]
    segments += [(k, prompts[k] + mixed_of[k], prompts[k] + counts[k], weights[i]) for k, i in enumerate(step.examples)]
    if settings.prompt_weight:
        segments += [
            (k, 1, prompts[k], weights[i] * settings.prompt_weight) for k, i in enumerate(step.examples) if weights[i]
        ]
    positions: list[int] = []
    labels: list[int] = []
    for k, start, stop, _ in segments:
        positions += range(starts[k] + start - 1, starts[k] + stop - 1)
        labels += sequences[k][start:stop]
    lengths = torch.tensor([stop - start for _, start, stop, _ in segments], dtype=torch.long)
    lam = torch.tensor(step.lam, dtype=torch.float64)
    return MicroBatch(
        inputs,
        positions=torch.tensor(positions, dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        weights=torch.tensor([weight for *_, weight in segments], dtype=torch.float64).repeat_interleave(lengths),
        example_of_position=torch.tensor([k for k, *_ in segments], dtype=torch.long).repeat_interleave(lengths),
        lam=lam.repeat_interleave(torch.tensor(mixed, dtype=torch.long)),
        num_examples=len(step.examples),
        examples=step.examples,
        spans=tuple((starts[k], len(encoded[i].input_ids)) for k, i in enumerate(step.examples)),
        num_pairs=num_pairs,
        num_response_positions=sum(counts),
    )
