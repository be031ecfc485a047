"""The steps of a run and the held-out part as a LightningDataModule."""

from collections.abc import Sequence

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from sftmix.data.collate import MicroBatch, StepBatch, collate_examples, collate_step
from sftmix.data.encoding import EncodedExample
from sftmix.data.pairing import Step, StepSampler


class RunSteps(Dataset[StepBatch]):
    """All optimizer steps of a run in order, each a pure function of its number."""

    def __init__(
        self,
        sampler: StepSampler,
        encoded: Sequence[EncodedExample],
        weights: Sequence[float],
        *,
        epochs: int,
        micro_batch_size: int,
        pad_token_id: int,
    ) -> None:
        """Keep what a step is made from; an epoch is dealt when its first step is asked for."""
        self.sampler = sampler
        self.encoded = encoded
        self.weights = weights
        self.epochs = epochs
        self.micro_batch_size = micro_batch_size
        self.pad_token_id = pad_token_id
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
            micro_batch_size=self.micro_batch_size,
            pad_token_id=self.pad_token_id,
        )


class HeldOut(Dataset[MicroBatch]):
    """The held-out examples in order, some at a time."""

    def __init__(self, encoded: Sequence[EncodedExample], batch_size: int, pad_token_id: int) -> None:
        """Keep the examples."""
        self.encoded = encoded
        self.batch_size = batch_size
        self.pad_token_id = pad_token_id

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self.encoded) // self.batch_size)

    def __getitem__(self, number: int) -> MicroBatch:
        """The tensors of a batch."""
        start = number * self.batch_size
        return collate_examples(self.encoded[start : start + self.batch_size], self.pad_token_id)


class SFTDataModule(LightningDataModule):
    """Paired (or plain) steps to train on, and the held-out part.

    Args:
        sampler: deals the examples into steps; confidence-stratified pairs where it knows the halves.
        train: examples to train on, in the sampler's numbering.
        weights: weight of next-token prediction of each of them.
        val: held-out examples; may be empty.
        epochs: passes over the examples.
        micro_batch_size: examples per forward.
        pad_token_id: fills up shorter sequences.
    """

    def __init__(
        self,
        sampler: StepSampler,
        train: Sequence[EncodedExample],
        weights: Sequence[float],
        val: Sequence[EncodedExample],
        *,
        epochs: int,
        micro_batch_size: int,
        pad_token_id: int,
    ) -> None:
        """Build both data sets."""
        super().__init__()
        self.steps = RunSteps(
            sampler, train, weights, epochs=epochs, micro_batch_size=micro_batch_size, pad_token_id=pad_token_id
        )
        self.val = HeldOut(val, micro_batch_size, pad_token_id)

    def train_dataloader(self) -> DataLoader[StepBatch]:
        """One item an optimizer step."""
        return DataLoader(self.steps, batch_size=None, shuffle=False)

    def val_dataloader(self) -> DataLoader[MicroBatch] | list[None]:
        """Some held-out examples an item, or nothing."""
        return DataLoader(self.val, batch_size=None, shuffle=False) if len(self.val) else []
