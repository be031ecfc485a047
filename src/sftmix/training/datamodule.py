"""The steps of a run and the held-out part as a LightningDataModule."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from lightning import LightningDataModule
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import Dataset

from sftmix.data.collate import BatchSettings, MicroBatch, StepBatch, collate_dialogues, collate_step
from sftmix.data.encoding import EncodedExample
from sftmix.data.layout import cut_by_tokens
from sftmix.data.pairing import Step, StepSampler
from sftmix.data.shards import EncodedExamples


class RunSteps(Dataset[StepBatch]):
    """All optimizer steps of a run in order, each a pure function of its number."""

    def __init__(
        self,
        sampler: StepSampler,
        encoded: Sequence[EncodedExample],
        weights: Sequence[float],
        settings: BatchSettings,
        *,
        epochs: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Keep what a step is made from; an epoch is dealt when its first step is asked for."""
        self.sampler = sampler
        self.encoded = encoded
        self.weights = weights
        self.settings = settings
        self.epochs = epochs
        self.rank = rank
        self.world_size = world_size
        self._dealt: tuple[int, list[Step]] = (-1, [])

    def __len__(self) -> int:
        """Steps of the run."""
        return self.epochs * self.sampler.steps_per_epoch

    def __getitem__(self, number: int) -> StepBatch:
        """The tensors of a step, counted from 0 over the whole run."""
        epoch, place = divmod(number, self.sampler.steps_per_epoch)
        if self._dealt[0] != epoch:
            self._dealt = (epoch, self.sampler.epoch(epoch))
        return collate_step(
            self._dealt[1][place],
            self.encoded,
            self.weights,
            self.settings,
            rank=self.rank,
            world_size=self.world_size,
        )


class HeldOut(Dataset[MicroBatch]):
    """The held-out examples, batches of like length, the shortest first.

    Attributes:
        order: indices of the examples in the order in which they come.
    """

    def __init__(self, encoded: EncodedExamples, settings: BatchSettings) -> None:
        """Cut the batches."""
        self.encoded = encoded
        self.settings = settings
        self._batches = cut_by_tokens(encoded.lengths.tolist(), settings.micro_batch_tokens)
        self.order = [i for batch in self._batches for i in batch]

    def __len__(self) -> int:
        """Batches."""
        return len(self._batches)

    def __getitem__(self, number: int) -> MicroBatch:
        """The tensors of a batch."""
        dialogues = [[self.encoded[i]] for i in self._batches[number]]
        return collate_dialogues(dialogues, self.settings.layout, self.settings.pad_token_id)


Batch = TypeVar("Batch")


class Ahead(Generic[Batch]):
    """The items of a data set in order, each prepared in a thread while the one before is worked on.

    Args:
        items: what to go through.
        numbers: which of them, in this order.
        pin_memory: put tensors where a GPU reads them without waiting.
    """

    def __init__(self, items: Dataset[Batch], numbers: Sequence[int], *, pin_memory: bool) -> None:
        """Nothing is prepared before the first item is asked for."""
        self.items = items
        self.numbers = numbers
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        """Number of items."""
        return len(self.numbers)

    def __iter__(self) -> Iterator[Batch]:
        """One item after the other; an error of the thread is raised here."""
        if not self.numbers:
            return
        with ThreadPoolExecutor(max_workers=1) as thread:
            coming = thread.submit(self._prepare, self.numbers[0])
            for number in self.numbers[1:]:
                ready = coming.result()
                coming = thread.submit(self._prepare, number)
                yield ready
            yield coming.result()

    def _prepare(self, number: int) -> Batch:
        item = self.items[number]
        return apply_to_collection(item, Tensor, Tensor.pin_memory) if self.pin_memory else item


class SFTDataModule(LightningDataModule):
    """Paired (or plain) steps to train on, and the held-out part.

    Args:
        sampler: deals the examples into steps; confidence-stratified pairs where it knows the halves.
        train: examples to train on, in the sampler's numbering.
        weights: weight of next-token prediction of each of them.
        val: held-out examples; may be empty.
        settings: how batches are laid out.
        epochs: passes over the examples.
        pin_memory: where a GPU computes.
        rank: this process among those that share a step.
        world_size: how many they are.

    Attributes:
        first_step: the step to begin with, counted from 0: a run that was cut off goes on.
    """

    def __init__(
        self,
        sampler: StepSampler,
        train: EncodedExamples,
        weights: Sequence[float],
        val: EncodedExamples,
        settings: BatchSettings,
        *,
        epochs: int,
        pin_memory: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Build both data sets."""
        super().__init__()
        self.steps = RunSteps(
            sampler,
            train,
            weights,
            settings,
            epochs=epochs,
            rank=rank,
            world_size=world_size,
        )
        self.first_step = 0
        self.val = HeldOut(val, settings)
        self.pin_memory = pin_memory

    def train_dataloader(self) -> Ahead[StepBatch]:
        """One item an optimizer step."""
        return Ahead(self.steps, range(self.first_step, len(self.steps)), pin_memory=self.pin_memory)

    def held_out(self, rank: int, world_size: int) -> Ahead[MicroBatch]:
        """A rank's share of the held-out batches; every rank has as many, the last of them maybe one that was there."""
        number = len(self.val)
        share = [k % number for k in range(rank, -(-number // world_size) * world_size, world_size)]
        return Ahead(self.val, share, pin_memory=self.pin_memory)
