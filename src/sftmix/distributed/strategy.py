"""How the processes of a run share its work: one alone, DDP (a model each), or FSDP2 (one model, in shards)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule

from sftmix.distributed.ranks import Ranks


class WholeModelStrategy(DDPStrategy):
    """DDP that leaves model and optimizer where they are: Lightning's own copies both to the host at the end, on each
    rank.
    """

    def __init__(self) -> None:
        """Gradients lie in the buckets that are reduced, not beside them."""
        super().__init__(gradient_as_bucket_view=True)

    def teardown(self) -> None:
        """Unwrap the model."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.model = self.lightning_module
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all ranks, whose gradients meet once a step.

    Lightning's own takes all devices of a node for tensor parallelism unless told otherwise, and reduces the gradients
    of each micro-batch.

    Args:
        world_size: ranks.
        accumulates_whole: keep the gradients of micro-batches whole on each rank, in float32, so that they meet once a
            step; else they meet after each micro-batch, which takes less memory and more traffic.
    """

    def __init__(self, world_size: int, *, accumulates_whole: bool) -> None:
        """One mesh of data parallelism."""
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1)
        self.accumulates_whole = accumulates_whole

    def model_to_device(self) -> None:
        """The shards are there; to move them again would part tied weights."""

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keep the gradients of a micro-batch on this rank."""
        assert self.model is not None
        shards = [m for m in self.model.modules() if isinstance(m, FSDPModule) and self.accumulates_whole]
        for shard in shards:
            shard.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for shard in shards:
                shard.set_requires_gradient_sync(True, recurse=False)


def trainer_arguments(
    strategy: str, accelerator: str, precision: str, ranks: Ranks, *, accumulates_whole: bool = True
) -> dict[str, Any]:
    """What Lightning's Trainer is told of devices, strategy and precision.

    The process group is there already: Lightning takes it as it is. Under FSDP2 the shards themselves compute in
    bfloat16, and Lightning has nothing to do for it.

    Args:
        strategy: single, ddp or fsdp.
        accelerator: cpu or gpu.
        precision: Lightning's name of it.
        ranks: this process.
        accumulates_whole: of FSDP2: gradients meet once a step.
    """
    common: dict[str, Any] = {
        "accelerator": accelerator,
        "use_distributed_sampler": False,
        "precision": "32-true" if strategy == "fsdp" else precision,
    }
    if strategy == "single":
        return {**common, "devices": 1, "plugins": [LightningEnvironment()]}  # not that of SLURM, nor of torchrun
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
        "strategy": FSDP2Strategy(ranks.world_size, accumulates_whole=accumulates_whole)
        if strategy == "fsdp"
        else WholeModelStrategy(),
    }
