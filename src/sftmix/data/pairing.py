"""The steps of an epoch: which examples meet in an optimizer step, who is whose partner, and each pair's lambda.

A pure function of (seed, epoch): any number of ranks, any micro-batch and a resumed run see the same steps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sftmix.errors import InputError


class Step(NamedTuple):
    """The examples of one optimizer step, by their index.

    Attributes:
        confident: the confident partner of each pair.
        unconfident: the unconfident partner of each pair.
        lam: lambda of each pair.
        singles: examples without a partner: they take part in next-token prediction alone.
    """

    confident: tuple[int, ...]
    unconfident: tuple[int, ...]
    lam: tuple[float, ...]
    singles: tuple[int, ...]

    @property
    def examples(self) -> tuple[int, ...]:
        """All examples of the step."""
        return (*self.confident, *self.unconfident, *self.singles)


class StepSampler:
    """Deals all examples into steps, each example once an epoch; the last step may be short.

    Args:
        num_examples: how many there are.
        is_confident: the half of each example (None: without a partner), or None for a plain shuffle without pairs.
        global_batch_size: examples per optimizer step, even where there are pairs.
        alpha: lambda ~ Beta(alpha, alpha).
        seed: of the order and of lambda.
        lengths: tokens of each example, for the length window.
        length_window: pairs (and examples without a partner) of like length share a step within so many steps, each
            pair as it was drawn; 1 leaves them where they fell.
        order: the place of each example in the order by which partners meet, the k-th of one half the k-th of the
            other: pairs are then the same in every epoch, and so are the examples of the larger half that stay alone,
            spread evenly over its order. None: partners are drawn anew in each epoch.

    Raises:
        InputError: fewer than two examples.
    """

    def __init__(
        self,
        num_examples: int,
        is_confident: Sequence[bool | None] | None,
        *,
        global_batch_size: int,
        alpha: float = 1.0,
        seed: int,
        lengths: Sequence[int] | None = None,
        length_window: int = 1,
        order: Sequence[int] | None = None,
    ) -> None:
        """Sort the examples by half."""
        if num_examples < 2:
            raise InputError(f"{num_examples} examples to train on, expected at least 2")
        halves = [None] * num_examples if is_confident is None else list(is_confident)
        if len(halves) != num_examples:
            raise ValueError(
                f"is_confident has {len(halves)} entries, expected one for each of {num_examples} examples"
            )
        if is_confident is not None and global_batch_size % 2:
            raise ValueError(f"global_batch_size={global_batch_size}: expected an even number, steps are made of pairs")
        self.num_examples = num_examples
        self.global_batch_size = global_batch_size
        self.alpha = alpha
        self.seed = seed
        self.length_window = length_window
        self._lengths = np.zeros(num_examples, dtype=np.int64) if lengths is None else np.array(lengths, dtype=np.int64)
        if len(self._lengths) != num_examples:
            raise ValueError(
                f"lengths has {len(self._lengths)} entries, expected one for each of {num_examples} examples"
            )
        if length_window != 1 and lengths is None:
            raise ValueError(f"length_window={length_window}: expected lengths, or length_window=1")
        self._confident = np.array([i for i, half in enumerate(halves) if half is True], dtype=np.int64)
        self._unconfident = np.array([i for i, half in enumerate(halves) if half is False], dtype=np.int64)
        self._partnerless = np.array([i for i, half in enumerate(halves) if half is None], dtype=np.int64)
        self._is_ordered = order is not None
        if order is not None:
            places = np.array(order, dtype=np.int64)
            if len(places) != num_examples:
                raise ValueError(f"order has {len(places)} entries, expected one for each of {num_examples} examples")
            self._confident, self._unconfident = (
                _met_first(half[np.argsort(places[half], kind="stable")], self.num_pairs)
                for half in (self._confident, self._unconfident)
            )

    @property
    def num_pairs(self) -> int:
        """Pairs of an epoch."""
        return min(len(self._confident), len(self._unconfident))

    @property
    def num_singles(self) -> int:
        """Examples of an epoch that have no partner: no half, or the surplus of the larger one."""
        return self.num_examples - 2 * self.num_pairs

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.num_examples // self.global_batch_size)

    def epoch(self, epoch: int) -> list[Step]:
        """The steps of an epoch, counted from 0."""
        generator = np.random.default_rng([self.seed, epoch])
        confident, unconfident = self._partners(generator)
        lam = generator.beta(self.alpha, self.alpha, size=self.num_pairs)
        singles = np.concatenate([confident[self.num_pairs :], unconfident[self.num_pairs :], self._partnerless])
        singles = generator.permutation(singles)
        longest = np.maximum(self._lengths[confident[: self.num_pairs]], self._lengths[unconfident[: self.num_pairs]])
        steps: list[Step] = []
        dealt = self._deal()
        for start in range(0, len(dealt), self.length_window):
            window = dealt[start : start + self.length_window]
            of_pairs = self._by_length([pairs for pairs, _ in window], longest)
            of_singles = self._by_length([alone for _, alone in window], self._lengths[singles])
            here = [
                Step(
                    tuple(confident[pairs].tolist()),
                    tuple(unconfident[pairs].tolist()),
                    tuple(lam[pairs].tolist()),
                    tuple(singles[alone].tolist()),
                )
                for pairs, alone in zip(of_pairs, of_singles, strict=True)
            ]
            if self.length_window > 1:  # short steps shall not come first; the epoch's last one may be no full step
                movable = here if start + self.length_window < len(dealt) else here[:-1]
                here = [movable[k] for k in generator.permutation(len(movable))] + here[len(movable) :]
            steps += here
        return steps

    def _partners(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Both halves in the order in which they are dealt: partners at the same place, the surplus after them."""
        if not self._is_ordered:
            return generator.permutation(self._confident), generator.permutation(self._unconfident)
        order = np.arange(max(len(self._confident), len(self._unconfident)))
        order[: self.num_pairs] = generator.permutation(self.num_pairs)
        return self._confident[order[: len(self._confident)]], self._unconfident[order[: len(self._unconfident)]]

    def _by_length(self, parts: list[slice], lengths: np.ndarray) -> list[np.ndarray]:
        """Indices of neighbouring parts, dealt to them again in the order of length where a window is open."""
        indices = np.concatenate([np.arange(part.start, part.stop) for part in parts])
        if self.length_window > 1:
            indices = indices[np.argsort(lengths[indices], kind="stable")]
        return np.split(indices, np.cumsum([part.stop - part.start for part in parts])[:-1])

    def _deal(self) -> list[tuple[slice, slice]]:
        """Which pairs and which singles fall to each step: singles two by two, spread evenly between the pairs."""
        if not self.num_pairs:
            size = self.global_batch_size
            starts = range(0, self.num_examples, size)
            return [(slice(0, 0), slice(start, min(start + size, self.num_examples))) for start in starts]
        twos = self.num_singles // 2
        units = self.num_pairs + twos
        per_step = self.global_batch_size // 2
        dealt = []
        for start in range(0, units, per_step):
            stop = min(start + per_step, units)
            before, after = (start * twos) // units, (stop * twos) // units
            dealt.append((slice(start - before, stop - after), slice(2 * before, 2 * after)))
        if self.num_singles % 2:
            if self.num_examples % self.global_batch_size == 1:  # every step is full: the last one is this example
                dealt.append((slice(0, 0), slice(2 * twos, 2 * twos)))
            pairs, alone = dealt[-1]
            dealt[-1] = (pairs, slice(alone.start, self.num_singles))
        return dealt


def descending(values: Sequence[float], ids: Sequence[str]) -> list[int]:
    """The place of each example in the order from the highest value to the lowest; equal values go by id."""
    order = sorted(range(len(ids)), key=lambda i: (-values[i], ids[i]))
    places = [0] * len(ids)
    for place, i in enumerate(order):
        places[i] = place
    return places


def _met_first(half: np.ndarray, num_pairs: int) -> np.ndarray:
    """A half in its order, those that meet someone first: the others are spread evenly over that order."""
    if not num_pairs:
        return half
    met = (2 * np.arange(num_pairs) + 1) * len(half) // (2 * num_pairs)
    return np.concatenate([half[met], np.delete(half, met)])
