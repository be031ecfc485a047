"""From a step to the tensors of its micro-batches: whole pairs together, padded right, rows of the head listed."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sftmix.data.encoding import EncodedExample
from sftmix.data.pairing import Step
from sftmix.functional.mixup import num_mixed_tokens


class MicroBatch(NamedTuple):
    """Some examples of a step, as one forward takes them. Position t of a sequence predicts its token t + 1.

    Attributes:
        input_ids: int64 `[batch seq]`.
        attention_mask: int64 `[batch seq]`, 0 on padding.
        rows: positions that predict response tokens, into `[batch * seq]`: the head runs on these alone.
        labels: the token that each row predicts.
        weights: weight of next-token prediction of each row's example.
        examples: the row's place among the examples of the micro-batch.
        confident: index into `rows` of the confident side of each mixed position.
        unconfident: index into `rows` of the unconfident side.
        lam: lambda of each mixed position.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    labels: Tensor
    weights: Tensor
    examples: Tensor
    confident: Tensor
    unconfident: Tensor
    lam: Tensor


class StepBatch(NamedTuple):
    """One optimizer step: its micro-batches and its counts, which are the same however the step is cut.

    Attributes:
        micro_batches: at least one.
        num_tokens: N, the response tokens of all its examples.
        num_mixed: positions that are mixed.
        ntp_weight: sum of the weights over the response tokens.
        num_input_tokens: tokens of prompts and responses, padding left out.
        lam_mean: mean lambda of its pairs (not a number without pairs).
    """

    micro_batches: tuple[MicroBatch, ...]
    num_tokens: int
    num_mixed: int
    ntp_weight: float
    num_input_tokens: int
    lam_mean: float


def collate_step(
    step: Step, encoded: Sequence[EncodedExample], weights: Sequence[float], *, micro_batch_size: int, pad_token_id: int
) -> StepBatch:
    """The tensors of a step.

    Pairs of like length share a micro-batch, which saves padding and changes nothing else.

    Args:
        step: indices into `encoded`.
        encoded: all examples.
        weights: weight of next-token prediction of each example.
        micro_batch_size: examples per forward; a pair is never cut, so at least 2 where there are pairs.
        pad_token_id: fills up the shorter sequences; no loss and no attention reads it.
    """
    pairs = list(zip(step.confident, step.unconfident, step.lam, strict=True))
    assert micro_batch_size >= (2 if pairs else 1)
    groups: list[tuple[list[tuple[int, int, float]], list[int]]] = []
    room = 0
    units: list[tuple[int, int, float] | int] = [*pairs, *step.singles]
    for unit in sorted(units, key=lambda u: _longest(u, encoded)):
        size = 1 if isinstance(unit, int) else 2
        if size > room:
            groups.append(([], []))
            room = micro_batch_size
        room -= size
        if isinstance(unit, int):
            groups[-1][1].append(unit)
        else:
            groups[-1][0].append(unit)
    counts = [encoded[i].num_response_tokens for i in step.examples]
    return StepBatch(
        tuple(_collate(pairs, singles, encoded, weights, pad_token_id) for pairs, singles in groups),
        num_tokens=sum(counts),
        num_mixed=sum(
            num_mixed_tokens(encoded[c].num_response_tokens, encoded[u].num_response_tokens)
            for c, u in zip(step.confident, step.unconfident, strict=True)
        ),
        ntp_weight=sum(weights[i] * n for i, n in zip(step.examples, counts, strict=True)),
        num_input_tokens=sum(len(encoded[i].input_ids) for i in step.examples),
        lam_mean=sum(step.lam) / len(step.lam) if step.lam else float("nan"),
    )


def collate_examples(encoded: Sequence[EncodedExample], pad_token_id: int) -> MicroBatch:
    """Examples without partners as one micro-batch, in their order: for scoring and for the held-out loss."""
    return _collate([], range(len(encoded)), encoded, [1.0] * len(encoded), pad_token_id)


def _longest(unit: tuple[int, int, float] | int, encoded: Sequence[EncodedExample]) -> int:
    members = (unit,) if isinstance(unit, int) else unit[:2]
    return max(len(encoded[i].input_ids) for i in members)


def _collate(
    pairs: Sequence[tuple[int, int, float]],
    singles: Sequence[int],
    encoded: Sequence[EncodedExample],
    weights: Sequence[float],
    pad_token_id: int,
) -> MicroBatch:
    members = [i for c, u, _ in pairs for i in (c, u)] + list(singles)
    width = max(len(encoded[i].input_ids) for i in members)
    input_ids = torch.full((len(members), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    rows: list[int] = []
    labels: list[int] = []
    row_weights: list[float] = []
    examples: list[int] = []
    first_row: list[int] = []
    for place, i in enumerate(members):
        ids, begin = encoded[i].input_ids, encoded[i].num_prompt_tokens
        input_ids[place, : len(ids)] = torch.tensor(ids)
        attention_mask[place, : len(ids)] = 1
        first_row.append(len(rows))
        rows += [place * width + t - 1 for t in range(begin, len(ids))]
        labels += ids[begin:]
        row_weights += [weights[i]] * (len(ids) - begin)
        examples += [place] * (len(ids) - begin)
    confident: list[int] = []
    unconfident: list[int] = []
    lam: list[float] = []
    for k, (c, u, mixing) in enumerate(pairs):
        shared = num_mixed_tokens(encoded[c].num_response_tokens, encoded[u].num_response_tokens)
        confident += range(first_row[2 * k], first_row[2 * k] + shared)
        unconfident += range(first_row[2 * k + 1], first_row[2 * k + 1] + shared)
        lam += [mixing] * shared
    return MicroBatch(
        input_ids,
        attention_mask,
        torch.tensor(rows, dtype=torch.long),
        torch.tensor(labels, dtype=torch.long),
        torch.tensor(row_weights, dtype=torch.float64),
        torch.tensor(examples, dtype=torch.long),
        torch.tensor(confident, dtype=torch.long),
        torch.tensor(unconfident, dtype=torch.long),
        torch.tensor(lam, dtype=torch.float64),
    )
