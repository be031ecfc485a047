"""Losses of validation examples: of the held-out part, and of further sets."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from sftmix.distributed.process_group import all_gather_object


class HeldOut(NamedTuple):
    """The last pass over the held-out examples, in the order of the examples."""

    examples: list[int]  # Index of each example: all, unless the Trainer limits the batches of validation
    num_tokens: list[int]  # Response tokens of each example
    nll: list[float]  # Negative log-likelihood of each response in nats

    def loss(self, examples: Sequence[int] | None = None) -> float:
        """Return the nll per response token in nats, over all or some examples; NaN if none of them was measured."""
        chosen = set(self.examples if examples is None else examples)
        places = [k for k, example in enumerate(self.examples) if example in chosen]
        return sum(self.nll[k] for k in places) / sum(self.num_tokens[k] for k in places) if places else math.nan

    def by_subset(self, subsets: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """Return the loss of each subset of which an example was measured, by the name of the subset."""
        losses = {name: self.loss(examples) for name, examples in subsets.items()}
        return {name: loss for name, loss in losses.items() if not math.isnan(loss)}


class MeasuredBatch(NamedTuple):
    """What a rank has measured of a batch, still on the device."""

    loader: int  # Number of the loader in the Trainer
    examples: tuple[int, ...]  # Index of each example
    num_tokens: Tensor
    nll: Tensor


def gathered(own: Sequence[MeasuredBatch]) -> dict[int, HeldOut]:
    """Return what all ranks have measured, by loader, in the order of the examples: the same on every rank."""
    entries = [
        (batch.loader, *entry)
        for batch in own
        for entry in zip(batch.examples, batch.num_tokens.tolist(), batch.nll.tolist(), strict=True)
    ]
    # by example: ranks may repeat a batch of another rank
    found = {(entry[0], entry[1]): entry[1:] for of_rank in all_gather_object(entries) for entry in of_rank}
    by_loader: dict[int, list[Sequence[float]]] = {}
    for loader, example in sorted(found):
        by_loader.setdefault(loader, []).append(found[loader, example])
    return {loader: HeldOut(*map(list, zip(*some, strict=True))) for loader, some in by_loader.items()}
