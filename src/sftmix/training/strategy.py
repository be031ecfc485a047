"""How the processes of a run share its work: one alone, DDP (a model each), or FSDP2 (one model, in shards)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule

from sftmix.training.ranks import Ranks


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all ranks, whose gradients meet once a step.

    Lightning's own takes all devices of a node for tensor parallelism unless told otherwise, and reduces the gradients
    of each micro-batch.
    """

    def __init__(self, world_size: int) -> None:
        """One mesh of data parallelism."""
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1)

    def model_to_device(self) -> None:
        """The shards are there; to move them again would part tied weights."""

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keep the gradients of a micro-batch on this rank."""
        assert self.model is not None
        shards = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        for shard in shards:
            shard.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for shard in shards:
                shard.set_requires_gradient_sync(True, recurse=False)


def trainer_arguments(strategy: str, accelerator: str, precision: str, ranks: Ranks) -> dict[str, Any]:
    """What Lightning's Trainer is told of devices, strategy and precision.

    The process group is there already: Lightning takes it as it is. Under FSDP2 the shards themselves compute in
    bfloat16, and Lightning has nothing to do for it.

    Args:
        strategy: single, ddp or fsdp.
        accelerator: cpu or gpu.
        precision: Lightning's name of it.
        ranks: this process.
    """
    common: dict[str, Any] = {
        "accelerator": accelerator,
        "use_distributed_sampler": False,
        "precision": "32-true" if strategy == "fsdp" else precision,
    }
    if strategy == "single":
        return {**common, "devices": 1}
    os.environ.update(
        RANK=str(ranks.rank),
        LOCAL_RANK=str(ranks.local_rank),
        GROUP_RANK=str(ranks.rank // ranks.num_local),
        WORLD_SIZE=str(ranks.world_size),
    )
    return {
        **common,
        "devices": ranks.num_local,
        "num_nodes": ranks.num_nodes,
        "plugins": [TorchElasticEnvironment()],
        "strategy": FSDP2Strategy(ranks.world_size) if strategy == "fsdp" else DDPStrategy(),
    }
