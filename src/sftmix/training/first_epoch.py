"""Split the examples by the losses of the first epoch (confidence.from=first_epoch): a callback.

The first epoch is next-token prediction, so its steps compute the loss of every response anyway. They are recorded
before the update of the step that uses them. From the second epoch on, the examples are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from sftmix.data.pairing import FirstEpochSampler
from sftmix.data.shards import EncodedExamples
from sftmix.functional.confidence import confidence_in_windows, perplexity, split_known
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.held_out import HeldOut
from sftmix.training.module import SFTMixModule
from sftmix.training.recorded_losses import RecordedLosses


class FirstEpochSplit(Callback):
    """Records the nll of each response in the first epoch, and gives the sampler the subsets before the second one.

    The confidence of an example is its rank within a window of the epoch's order (`confidence_in_windows`), since the
    weights move during the epoch. The split is at its median. Held-out examples are measured by the validation after
    the first epoch, all under the same weights, and ranked among themselves.

    The recorded losses (`RecordedLosses`) belong to the training state. Micro-batches and ranks can change the subset
    of an example only by the rounding of the model's own computation, if its loss is as close to that of a neighbor in
    rank.

    Args:
        window: Least number of examples of a window.
        pair_order: Maps the confidence of the examples, by id, to the rank by which each is paired, or to None.

    Attributes:
        val: Held-out examples after the first epoch. None if nothing is held out.
        confidence: Confidence by id, of examples to train on and of held-out ones.
        is_confident: Whether each example to train on is confident; None if it was not recorded. Empty at first.
        val_is_confident: The same of held-out examples.
    """

    def __init__(self, window: int, pair_order: Callable[[dict[str, float]], Sequence[int] | None]) -> None:
        self.window = window
        self.pair_order = pair_order
        self.val: HeldOut | None = None
        self.confidence: dict[str, float] = {}
        self.is_confident: list[bool | None] = []
        self.val_is_confident: list[bool | None] = []
        self._recorded = RecordedLosses()
        self._data: SFTDataModule | None = None

    @property
    def nll(self) -> dict[int, float]:
        """Nll of each recorded response in nats, by the index of the example to train on."""
        return self._recorded.nll

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the module report the losses of its steps."""
        assert isinstance(pl_module, SFTMixModule)
        self._data = trainer.datamodule  # type: ignore[attr-defined]
        pl_module.record = self._recorded.add

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Split at once if the run resumes after the first epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Split before the first step of the second epoch."""
        assert isinstance(pl_module, SFTMixModule)
        if pl_module.record is not None and trainer.global_step >= trainer.num_training_batches:
            pl_module.record = None
            pl_module.check_finite()  # a loss that is not a number has no rank
            self._recorded.gather()
            self._split()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the held-out losses after the first epoch."""
        assert isinstance(pl_module, SFTMixModule)
        if not trainer.sanity_checking and self.val is None:
            self.val = pl_module.held_out

    def state_dict(self) -> dict[str, Any]:
        """Return the losses of all ranks. Every rank calls this method, and waits for its device."""
        val = None if self.val is None else self.val._asdict()
        return {**self._recorded.state_dict(), "val": val}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the record of an earlier process. If it is complete, split: no step may be left to do so."""
        self._recorded.load_state_dict(state_dict)
        self.val = None if state_dict["val"] is None else HeldOut(**state_dict["val"])
        if self._data is not None and len(self.nll) == len(self._data.train):
            self._split()

    def _split(self) -> None:
        """Rank the recorded examples, and give sampler and data module the subsets."""
        data = self._data
        assert data is not None
        assert isinstance(data.sampler, FirstEpochSampler)
        order = [i for step in data.sampler.epoch(0) for i in step.examples if i in self.nll]
        confidence = self._ranks(data.train, order, [self.nll[i] for i in order], self.window)
        self.is_confident = split_known(data.train.ids, confidence)
        held_out = self.val or HeldOut([], [], [])
        of_val = self._ranks(data.val, held_out.examples, held_out.nll, max(2, len(held_out.examples)))
        self.val_is_confident = split_known(data.val.ids, of_val)
        self.confidence = {**confidence, **of_val}
        data.sampler.use_subsets(self.is_confident, self.pair_order(confidence))
        data.val_subsets = {
            name: [k for k, value in enumerate(self.val_is_confident) if value is subset]
            for name, subset in (("confident", True), ("unconfident", False))
        }

    @staticmethod
    def _ranks(
        examples: EncodedExamples, indices: Sequence[int], nll: Sequence[float], window: int
    ) -> dict[str, float]:
        """Return the confidence of some examples, in the order of their measurement, by id."""
        all_ids = examples.ids
        ids = [all_ids[i] for i in indices]
        num_tokens = torch.tensor([int(examples.num_response_tokens[i]) for i in indices], dtype=torch.long)
        perplexities = perplexity(torch.tensor(nll, dtype=torch.float64), num_tokens)
        return dict(zip(ids, confidence_in_windows(perplexities, ids, window).tolist(), strict=True))
