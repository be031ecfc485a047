"""Draw the optimizer steps of an epoch (examples, partners, lam), and split examples by other rules than confidence.

The steps are a pure function of (seed, epoch). They do not depend on the number of ranks, on the size of the
micro-batches, or on whether the run was resumed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from sftmix.errors import InputError
from sftmix.functional.confidence import split_by_confidence

REDRAW = 1  # makes the draws of partners within steps independent of the draws of the steps


class Step(NamedTuple):
    """The examples of one optimizer step, or of one of its micro-batches, by their index in the data set.

    Attributes:
        confident: Confident example of each pair. With pairing within or free: one of the two.
        unconfident: Unconfident example of each pair. With pairing within or free: the other one.
        lam: lam of each pair.
        unpaired: Examples without a partner, which take part in next-token prediction only.
    """

    confident: tuple[int, ...] = ()
    unconfident: tuple[int, ...] = ()
    lam: tuple[float, ...] = ()
    unpaired: tuple[int, ...] = ()

    @property
    def examples(self) -> tuple[int, ...]:
        """All examples of the step."""
        return (*self.confident, *self.unconfident, *self.unpaired)


@dataclass(frozen=True)
class SamplerSettings:
    """How steps are drawn.

    Attributes:
        global_batch_size: Examples per optimizer step over all ranks. It must be even if examples are paired.
        seed: Seed of the order, the partners, and lam.
        alpha: lam ~ Beta(alpha, alpha).
        length_window: Number of consecutive steps within which pairs, and unpaired examples, are sorted by length so
            that examples of similar length share a step. Partners do not change. 1 turns sorting off.
        pairing: If within or free, partners are drawn again inside each step, with the same examples and lam: of the
            same subset, or whatever their subsets. Otherwise, partners are of opposite subsets.
    """

    global_batch_size: int
    seed: int
    alpha: float = 1.0
    length_window: int = 1
    pairing: str = "across"


class StepSampler:
    """Divides all examples into steps, each example once per epoch. Only the last step may be short.

    Args:
        is_confident: Subset of each example: True for confident, False for unconfident, None for neither. None instead
            of a sequence: no example is paired.
        lengths: Tokens of each example. Required if `settings.length_window` is above 1.
        pair_order: Rank of each example. If given, the k-th confident example is paired with the k-th unconfident one
            in every epoch, and the surplus of the larger subset, spread evenly over its order, is unpaired. If None,
            partners are drawn anew in each epoch.

    Raises:
        InputError: If there are fewer than two examples.
    """

    def __init__(
        self,
        num_examples: int,
        is_confident: Sequence[bool | None] | None,
        settings: SamplerSettings,
        *,
        lengths: Sequence[int] | None = None,
        pair_order: Sequence[int] | None = None,
    ) -> None:
        if num_examples < 2:
            raise InputError(f"{num_examples} examples to train on, expected at least 2")
        if is_confident is not None and settings.global_batch_size % 2:
            raise ValueError(
                f"global_batch_size={settings.global_batch_size}: expected an even number, steps are made of pairs"
            )
        if settings.length_window != 1 and lengths is None:
            raise ValueError(f"length_window={settings.length_window}: expected lengths, or length_window=1")
        for name, values in (("is_confident", is_confident), ("lengths", lengths), ("pair_order", pair_order)):
            if values is not None and len(values) != num_examples:
                raise ValueError(f"{name} has {len(values)} entries, expected one for each of {num_examples} examples")
        self.num_examples = num_examples
        self.settings = settings
        self._lengths = np.zeros(num_examples, dtype=np.int64) if lengths is None else np.array(lengths, dtype=np.int64)
        subsets: Sequence[bool | None] = [None] * num_examples if is_confident is None else is_confident
        self._confident, self._unconfident, self._in_neither = (
            np.array([i for i, subset in enumerate(subsets) if subset is each], dtype=np.int64)
            for each in (True, False, None)
        )
        self._has_fixed_pairs = pair_order is not None
        if pair_order is not None:
            ranks = np.array(pair_order, dtype=np.int64)
            self._confident, self._unconfident = (
                _paired_first(subset[np.argsort(ranks[subset], kind="stable")], self.num_pairs)
                for subset in (self._confident, self._unconfident)
            )

    @property
    def num_pairs(self) -> int:
        """Number of pairs of an epoch."""
        return min(len(self._confident), len(self._unconfident))

    @property
    def num_unpaired(self) -> int:
        """Number of unpaired examples of an epoch: those in neither subset, and the surplus of the larger subset."""
        return self.num_examples - 2 * self.num_pairs

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.num_examples // self.settings.global_batch_size)

    @property
    def paired(self) -> "StepSampler":
        """The sampler of the epochs with pairs."""
        return self

    def epoch(self, epoch: int) -> list[Step]:
        """Return the steps of an epoch, counted from 0."""
        generator = np.random.default_rng([self.settings.seed, epoch])
        # Partners have the same position in both subsets, and the surplus of the larger subset comes last.
        if self._has_fixed_pairs:
            order = np.arange(max(len(self._confident), len(self._unconfident)))
            order[: self.num_pairs] = generator.permutation(self.num_pairs)
            confident, unconfident = (s[order[: len(s)]] for s in (self._confident, self._unconfident))
        else:
            confident, unconfident = (generator.permutation(s) for s in (self._confident, self._unconfident))
        lam = generator.beta(self.settings.alpha, self.settings.alpha, size=self.num_pairs)
        unpaired = np.concatenate([confident[self.num_pairs :], unconfident[self.num_pairs :], self._in_neither])
        unpaired = generator.permutation(unpaired)
        pair_lengths = np.maximum(
            self._lengths[confident[: self.num_pairs]], self._lengths[unconfident[: self.num_pairs]]
        )
        ranges, window = self._ranges_of_steps(), self.settings.length_window
        steps: list[Step] = []
        for start in range(0, len(ranges), window):
            of_pairs, of_unpaired = zip(*ranges[start : start + window], strict=True)
            in_window = [
                Step(
                    tuple(confident[pairs].tolist()),
                    tuple(unconfident[pairs].tolist()),
                    tuple(lam[pairs].tolist()),
                    tuple(unpaired[rest].tolist()),
                )
                for pairs, rest in zip(
                    self._sorted_by_length(of_pairs, pair_lengths),
                    self._sorted_by_length(of_unpaired, self._lengths[unpaired]),
                    strict=True,
                )
            ]
            if window > 1:  # else steps of short examples come first; only the epoch's last step may be short
                movable = in_window if start + window < len(ranges) else in_window[:-1]
                in_window = [movable[k] for k in generator.permutation(len(movable))] + in_window[len(movable) :]
            steps += in_window
        if self.settings.pairing not in ("within", "free"):
            return steps
        redraw = np.random.default_rng([self.settings.seed, epoch, REDRAW])
        return [_paired_again(step, redraw, is_within=self.settings.pairing == "within") for step in steps]

    def _sorted_by_length(self, ranges: Sequence[slice], lengths: np.ndarray) -> list[np.ndarray]:
        """Return the indices of consecutive ranges; with a length window, divide them among the ranges by length."""
        indices = np.concatenate([np.arange(part.start, part.stop) for part in ranges])
        if self.settings.length_window > 1:
            indices = indices[np.argsort(lengths[indices], kind="stable")]
        return np.split(indices, np.cumsum([part.stop - part.start for part in ranges])[:-1])

    def _ranges_of_steps(self) -> list[tuple[slice, slice]]:
        """Return the range of pairs and the range of unpaired examples of each step.

        Unpaired examples are taken two by two and spread evenly between the pairs.
        """
        size = self.settings.global_batch_size
        if not self.num_pairs:
            starts = range(0, self.num_examples, size)
            return [(slice(0, 0), slice(start, min(start + size, self.num_examples))) for start in starts]
        twos = self.num_unpaired // 2
        units = self.num_pairs + twos
        ranges = []
        for start in range(0, units, size // 2):
            stop = min(start + size // 2, units)
            before, after = (start * twos) // units, (stop * twos) // units
            ranges.append((slice(start - before, stop - after), slice(2 * before, 2 * after)))
        if self.num_unpaired % 2:
            if self.num_examples % size == 1:  # every step is full: the last step is this example only
                ranges.append((slice(0, 0), slice(2 * twos, 2 * twos)))
            pairs, rest = ranges[-1]
            ranges[-1] = (pairs, slice(rest.start, self.num_unpaired))
        return ranges


class FirstEpochSampler(StepSampler):
    """Steps without pairs in the first epoch and, once the subsets are known, with pairs from the second epoch on.

    Epochs have as many steps with pairs as without. The first epoch is that of next-token prediction with this seed.
    """

    def __init__(self, num_examples: int, settings: SamplerSettings, *, lengths: Sequence[int] | None = None) -> None:
        super().__init__(num_examples, None, settings, lengths=lengths)
        self._later: StepSampler | None = None

    @property
    def paired(self) -> StepSampler:
        """The sampler of the second epoch and of all later ones; this one until the subsets are known."""
        return self if self._later is None else self._later

    def use_subsets(self, is_confident: Sequence[bool | None], pair_order: Sequence[int] | None) -> None:
        """Pair the examples from the second epoch on. The arguments are those of `StepSampler`."""
        lengths = self._lengths.tolist()
        self._later = StepSampler(
            self.num_examples, is_confident, self.settings, lengths=lengths, pair_order=pair_order
        )

    def epoch(self, epoch: int) -> list[Step]:
        """Return the steps of an epoch, counted from 0.

        Raises:
            RuntimeError: If the epoch needs the subsets, and they are not known.
        """
        if epoch == 0:
            return super().epoch(0)
        if self._later is None:
            raise RuntimeError(f"epoch {epoch}: the subsets are not known, expected `use_subsets` before it")
        return self._later.epoch(epoch)


def descending_ranks(values: Sequence[float], ids: Sequence[str]) -> list[int]:
    """Return the rank of each example from the highest value to the lowest, counted from 0. Ties are broken by id."""
    order = sorted(range(len(ids)), key=lambda i: (-values[i], ids[i]))
    ranks = [0] * len(ids)
    for rank, i in enumerate(order):
        ranks[i] = rank
    return ranks


def _paired_again(step: Step, generator: np.random.Generator, *, is_within: bool) -> Step:
    """Draw the partners within a step again, uniformly, and keep lam by the number of the pair.

    Within the subsets, an odd number of pairs leaves one example of each subset without a partner, and the last lam
    is not used.
    """
    if not is_within:
        drawn = generator.permutation([*step.confident, *step.unconfident]).tolist()
        return step._replace(confident=tuple(drawn[::2]), unconfident=tuple(drawn[1::2]))
    drawn = [generator.permutation(subset).tolist() for subset in (step.confident, step.unconfident)]
    rest = tuple(subset.pop() for subset in drawn if len(subset) % 2)
    first, second = ([i for subset in drawn for i in subset[start::2]] for start in (0, 1))
    return Step(tuple(first), tuple(second), step.lam[: len(first)], step.unpaired + rest)


def _paired_first(subset: np.ndarray, num_pairs: int) -> np.ndarray:
    """Move the examples of an ordered subset that are paired to the front; the unpaired ones are spread evenly."""
    if not num_pairs:
        return subset
    is_paired = (2 * np.arange(num_pairs) + 1) * len(subset) // (2 * num_pairs)
    return np.concatenate([subset[is_paired], np.delete(subset, is_paired)])


def random_subsets(ids: Sequence[str], seed: int) -> list[bool]:
    """Split by the hash of seed and id into subsets of equal size; of an odd number, one more is unconfident."""
    hashes = [hashlib.sha256(f"half {seed} {i}".encode()).digest() for i in ids]
    return _lowest([int.from_bytes(digest[:8], "big") / 2**64 for digest in hashes], ids)


def subsets_by_length(num_response_tokens: Sequence[int], ids: Sequence[str]) -> list[bool]:
    """Split by length in tokens into subsets of equal size: shorter responses are confident. Ties are broken by id."""
    return _lowest(num_response_tokens, ids)


def subsets_by_group(groups: Sequence[str], confident: str) -> list[bool]:
    """Split by group: examples of group `confident` are confident. The subsets may differ in size."""
    return [group == confident for group in groups]


def _lowest(values: Sequence[float], ids: Sequence[str]) -> list[bool]:
    """Return which examples have values below the median, by the rule that splits by confidence (Step 1)."""
    return split_by_confidence(-torch.tensor(values, dtype=torch.float64), ids).tolist()
