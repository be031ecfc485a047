"""The optimizer steps of a run and the held-out examples as a LightningDataModule."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from sftmix.data.collate import BatchSettings, MicroBatch, StepBatch, collate_dialogues, collate_step
from sftmix.data.encoding import EncodedExample
from sftmix.data.layout import cut_by_tokens
from sftmix.data.pairing import Step, StepSampler
from sftmix.data.shards import EncodedExamples


def _identity(batch: Any) -> Any:
    return batch


@dataclass(eq=False)
class StepDataset(Dataset[StepBatch]):
    """A rank's part of each optimizer step, by the key (epoch, index in the epoch).

    The steps of an epoch are drawn when its first step is read.
    """

    sampler: StepSampler
    encoded: Sequence[EncodedExample]  # Examples to train on, in the sampler's numbering
    weights: Sequence[float]  # Weight of next-token prediction of each example
    batches: BatchSettings  # How a step becomes micro-batches
    rank: int = 0
    world_size: int = 1
    _epoch: tuple[int, Sequence[Step]] = field(default=(-1, ()), init=False)

    def __getitem__(self, key: tuple[int, int]) -> StepBatch:
        """Return the tensors of a step."""
        epoch, index = key
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.sampler.epoch(epoch))
        step = self._epoch[1][index]
        return collate_step(step, self.encoded, self.weights, self.batches, rank=self.rank, world_size=self.world_size)


class StepLoader:
    """The steps of an epoch, from the position of the Trainer's loop.

    The position is read when the first step is read. By then Lightning has restored its loops, so a run that resumes
    within an epoch continues with the next step. Because the class is not a `DataLoader`, Lightning does not change it
    when there are several devices. Under `overfit_batches` every epoch repeats the steps of the first epoch.

    Args:
        trainer: Has the epoch and the position in it.
        pin_memory: Copy tensors to memory that a GPU can read without waiting.
        num_workers: Processes that prepare steps; 0 prepares them in this process.
    """

    def __init__(self, steps: StepDataset, trainer: Trainer, *, pin_memory: bool, num_workers: int) -> None:
        self.steps = steps
        self.trainer = trainer
        self.pin_memory = pin_memory
        self.num_workers = num_workers

    def __len__(self) -> int:
        """Return the number of steps of a whole epoch."""
        return self.steps.sampler.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch. That there is a state makes Lightning resume within an epoch."""
        return {"epoch": self.trainer.current_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: the position is in the state of the Trainer's loop."""

    def __iter__(self) -> Iterator[StepBatch]:
        """Yield the steps from the loop's position to the end of the epoch."""
        first = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        overfits = self.trainer.overfit_batches  # type: ignore[attr-defined]
        epoch = 0 if overfits else self.trainer.current_epoch
        keys = [(epoch, index) for index in range(first, len(self))]
        yield from DataLoader(
            self.steps,
            batch_size=None,
            sampler=keys,
            collate_fn=_identity,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
        )


class ValidationLoader:
    """A rank's share of the held-out examples, in batches of similar length, the shortest first.

    `MicroBatch.examples` holds indices of held-out examples. Every rank has the same number of batches, since ranks
    that share a model must run it equally often. The last batches of a rank may repeat those of another rank. The
    module counts their examples once.
    """

    def __init__(
        self, encoded: EncodedExamples, batches: BatchSettings, rank: int, world_size: int, *, pin_memory: bool
    ) -> None:
        def collate(members: list[int]) -> MicroBatch:
            batch = collate_dialogues([[encoded[i]] for i in members], batches.layout, batches.pad_token_id)
            return batch._replace(examples=tuple(members))

        cut = cut_by_tokens(encoded.lengths.tolist(), batches.micro_batch_tokens)
        num_own = -(-len(cut) // world_size)
        self._members = [cut[(k * world_size + rank) % len(cut)] for k in range(num_own)]
        self._loader: DataLoader[Any] = DataLoader(
            self._members,  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=collate,
            pin_memory=pin_memory,
        )

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self._loader)


class ValidationSet(NamedTuple):
    """Validation examples of another origin than the examples to train on."""

    examples: EncodedExamples
    subsets: Mapping[str, Sequence[int]] = {}  # Indices of the examples of each subset, by the name of the subset


class SFTDataModule(LightningDataModule):
    """Optimizer steps to train on, with or without pairs, and held-out examples.

    The Trainer determines the rank and the number of ranks.

    Args:
        sampler: Returns the steps of an epoch. It makes pairs if it has the subsets.
        train: Examples to train on, in the sampler's numbering.
        val: Held-out examples. There may be none.
        batches: How steps and held-out examples become micro-batches.
        weights: Weight of next-token prediction of each example to train on; None: 1.
        val_subsets: Indices of the held-out examples of each subset, by the name of the subset. Their losses are
            logged beside that of all held-out examples.
        val_sets: Validation examples of another origin, by name. Each set has its own losses.
        num_workers: Processes that prepare steps; 0 prepares them in the training process.
    """

    def __init__(
        self,
        sampler: StepSampler,
        train: EncodedExamples,
        val: EncodedExamples,
        batches: BatchSettings,
        *,
        weights: Sequence[float] | None = None,
        val_subsets: Mapping[str, Sequence[int]] | None = None,
        val_sets: Mapping[str, ValidationSet] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.train = train
        self.val = val
        self.batches = batches
        self.weights = [1.0] * len(train) if weights is None else weights
        self.val_subsets = val_subsets or {}
        self.val_sets = val_sets or {}
        self.num_workers = num_workers

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps of an epoch."""
        return self.sampler.steps_per_epoch

    def steps(self, rank: int = 0, world_size: int = 1) -> StepDataset:
        """Return a rank's part of every optimizer step."""
        return StepDataset(self.sampler, self.train, self.weights, self.batches, rank, world_size)

    def train_dataloader(self) -> StepLoader:
        """Return a rank's part of each optimizer step of the epoch."""
        trainer = self.trainer
        assert trainer is not None
        pins = trainer.strategy.root_device.type == "cuda"
        steps = self.steps(trainer.global_rank, trainer.world_size)
        return StepLoader(steps, trainer, pin_memory=pins, num_workers=self.num_workers)

    @property
    def measured(self) -> dict[str | None, ValidationSet]:
        """What validation measures, in this order: the held-out examples (None), if there are any, and each set."""
        measured: dict[str | None, ValidationSet] = {}
        if len(self.val):
            measured[None] = ValidationSet(self.val, self.val_subsets)
        measured.update(self.val_sets)
        return measured

    def val_dataloader(self) -> ValidationLoader | list[ValidationLoader]:
        """Return a rank's share of the held-out batches, or a list of loaders if there are further sets or none."""
        trainer = self.trainer
        assert trainer is not None
        ranks, pins = (trainer.global_rank, trainer.world_size), trainer.strategy.root_device.type == "cuda"
        loaders = [
            ValidationLoader(measured.examples, self.batches, *ranks, pin_memory=pins)
            for measured in self.measured.values()
        ]
        return loaders[0] if len(loaders) == 1 else loaders
