"""From a step to the tensors of its micro-batches: what the body runs on, and the rows that the head runs on."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sftmix.data.encoding import EncodedExample
from sftmix.data.layout import BodyInput, lay_out
from sftmix.data.microbatching import split_into_microbatches
from sftmix.data.pairing import Step
from sftmix.functional.mixup import num_mixed_tokens


class MicroBatch(NamedTuple):
    """Some examples of a step, as one backward takes them. Position t of a sequence predicts its token t + 1.

    Rows come in the order that the loss wants: the P confident sides of the mixed positions, their P unconfident
    sides, and then all others.

    Attributes:
        inputs: of the body, one forward each.
        rows: positions that predict tokens which carry loss, into the flattened inputs: the head runs on these alone.
        labels: the token that each row predicts.
        weights: weight of next-token prediction of each row: its example's, times the prompt weight on prompt tokens.
        examples: the row's place among the examples of the micro-batch.
        lam: lambda of each of the P mixed positions.
        num_examples: how many examples there are.
        members: their numbers among all examples, in a training step.
        spans: where each of them begins in the flattened inputs, and its tokens, in a training step.
        num_pairs: the first so many examples are confident, as many after them their partners.
        num_response_rows: number of rows that predict response tokens. The rows after them predict prompt tokens.
    """

    inputs: tuple[BodyInput, ...]
    rows: Tensor
    labels: Tensor
    weights: Tensor
    examples: Tensor
    lam: Tensor
    num_examples: int
    members: tuple[int, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    num_pairs: int = 0
    num_response_rows: int = 0


class StepBatch(NamedTuple):
    """A rank's part of one optimizer step, and the counts of the whole step, the same on every rank.

    Attributes:
        micro_batches: at least one, as many on every rank; one may be empty.
        num_tokens: N, the response tokens of all its examples; where prompts carry loss, their tokens from the second
            on too.
        num_response_tokens: Response tokens of all its examples, without prompt tokens.
        num_mixed: positions that are mixed.
        ntp_weight: sum of the weights over the tokens that N counts.
        num_input_tokens: tokens of prompts and responses, padding left out.
        lam_mean: mean lambda of its pairs (not a number without pairs).
        lam: lambda of each of its pairs, on whichever rank they are.
    """

    micro_batches: tuple[MicroBatch, ...]
    num_tokens: int
    num_response_tokens: int
    num_mixed: int
    ntp_weight: float
    num_input_tokens: int
    lam_mean: float
    lam: tuple[float, ...]


def collate_step(
    step: Step,
    encoded: Sequence[EncodedExample],
    weights: Sequence[float],
    *,
    layout: str,
    micro_batch_tokens: int,
    pad_token_id: int,
    prompt_weight: float = 0.0,
    rank: int = 0,
    world_size: int = 1,
) -> StepBatch:
    """The tensors of a rank's part of a step.

    Args:
        step: indices into `encoded`.
        encoded: all examples.
        weights: weight of next-token prediction of each example.
        layout: padded, grouped or packed.
        micro_batch_tokens: tokens of a micro-batch; a pair is never cut.
        pad_token_id: fills up shorter sequences.
        prompt_weight: of the loss on an example's prompt, beside its response; 0: prompts carry none.
        rank: whose part.
        world_size: number of ranks.
    """
    here = {i: encoded[i] for i in step.examples}
    counts = {i: example.num_response_tokens for i, example in here.items()}
    lengths = {i: len(example.input_ids) for i, example in here.items()}
    of_prompt = {i: example.num_prompt_tokens - 1 if prompt_weight else 0 for i, example in here.items()}
    parts = split_into_microbatches(
        step, lengths, micro_batch_tokens=micro_batch_tokens, padded=layout == "padded", world_size=world_size
    )
    return StepBatch(
        tuple(_collate(part, here, weights, prompt_weight, layout, pad_token_id) for part in parts[rank]),
        num_tokens=sum(counts.values()) + sum(of_prompt.values()),
        num_response_tokens=sum(counts.values()),
        num_mixed=sum(
            num_mixed_tokens(counts[c], counts[u]) for c, u in zip(step.confident, step.unconfident, strict=True)
        ),
        ntp_weight=sum(weights[i] * (counts[i] + prompt_weight * of_prompt[i]) for i in step.examples),
        num_input_tokens=sum(lengths.values()),
        lam_mean=sum(step.lam) / len(step.lam) if step.lam else float("nan"),
        lam=step.lam,
    )


def collate_dialogues(dialogues: Sequence[Sequence[EncodedExample]], layout: str, pad_token_id: int) -> MicroBatch:
    """Examples without partners as one micro-batch, in their order: for scoring and for the held-out loss.

    Args:
        dialogues: examples that one sequence holds: the ids of each are the beginning of the next one's.
        layout: padded, grouped or packed.
        pad_token_id: fills up shorter sequences.
    """
    inputs, starts = lay_out([turns[-1].input_ids for turns in dialogues], layout, pad_token_id)
    rows: list[int] = []
    labels: list[int] = []
    counts: list[int] = []
    for start, turns in zip(starts, dialogues, strict=True):
        for turn in turns:
            rows += range(start + turn.num_prompt_tokens - 1, start + len(turn.input_ids) - 1)
            labels += turn.input_ids[turn.num_prompt_tokens :]
            counts.append(turn.num_response_tokens)
    return MicroBatch(
        inputs,
        torch.tensor(rows, dtype=torch.long),
        torch.tensor(labels, dtype=torch.long),
        torch.ones(len(rows), dtype=torch.float64),
        torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long)),
        torch.empty(0, dtype=torch.float64),
        len(counts),
        num_response_rows=len(rows),
    )


def _collate(
    part: Step,
    encoded: Mapping[int, EncodedExample],
    weights: Sequence[float],
    prompt_weight: float,
    layout: str,
    pad_token_id: int,
) -> MicroBatch:
    members = part.examples
    # an empty part still runs the body, since other ranks wait for it: packed and padded run it once a part everywhere
    sequences = [encoded[i].input_ids for i in members] or [(pad_token_id,)]
    inputs, starts = lay_out(sequences, layout, pad_token_id)
    num_pairs = len(part.lam)
    counts = [encoded[i].num_response_tokens for i in members]
    begins = [encoded[i].num_prompt_tokens for i in members]
    own = [weights[i] for i in members]
    mixed = [num_mixed_tokens(counts[k], counts[num_pairs + k]) for k in range(num_pairs)]
    mixed += mixed + [0] * len(part.singles)
    # (example, first token that is predicted, last one + 1, its weight) in the order of the rows
    runs = [(k, begins[k], begins[k] + mixed[k], own[k]) for k in range(2 * num_pairs)]
    runs += [(k, begins[k] + mixed[k], begins[k] + n, own[k]) for k, n in enumerate(counts)]
    if prompt_weight:
        runs += [(k, 1, begins[k], own[k] * prompt_weight) for k in range(len(members)) if own[k]]
    lengths = torch.tensor([stop - start for _, start, stop, _ in runs], dtype=torch.long)

    def over_rows(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """A value of each run at each of its rows."""
        return torch.tensor(values, dtype=dtype).repeat_interleave(lengths)

    rows: list[int] = []
    labels: list[int] = []
    for k, start, stop, _ in runs:
        rows += range(starts[k] + start - 1, starts[k] + stop - 1)
        labels += sequences[k][start:stop]
    return MicroBatch(
        inputs,
        torch.tensor(rows, dtype=torch.long),
        torch.tensor(labels, dtype=torch.long),
        over_rows([weight for *_, weight in runs], torch.float64),
        over_rows([k for k, *_ in runs], torch.long),
        torch.tensor(part.lam, dtype=torch.float64).repeat_interleave(
            torch.tensor(mixed[:num_pairs], dtype=torch.long)
        ),
        len(members),
        members,
        tuple((starts[k], len(encoded[i].input_ids)) for k, i in enumerate(members)),
        num_pairs,
        sum(counts),
    )
