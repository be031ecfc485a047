"""Operations, time, host memory and disk of a stage, by arithmetic."""

from sftmix.estimate.memory import TrainingSetup

FORWARD, BACKWARD_INPUTS, BACKWARD_WEIGHTS = 2, 2, 2  # operations per parameter and token, embeddings included
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def num_flops(num_parameters: int, num_trained: int, num_tokens: int) -> int:
    """Return the operations of the model's matrices: 6 per parameter and token if all are trained, 2 for scoring.

    Args:
        num_trained: Number of trained parameters; 0 if nothing is trained.
        num_tokens: Tokens that go through the model.
    """
    if not num_trained:
        return FORWARD * num_parameters * num_tokens
    return ((FORWARD + BACKWARD_INPUTS) * num_parameters + BACKWARD_WEIGHTS * num_trained) * num_tokens


def recomputed_flops(num_parameters: int, num_tokens: int) -> int:
    """Return the operations that activation checkpointing adds: each block computes its forward pass again."""
    return FORWARD * num_parameters * num_tokens


def step_traffic(setup: TrainingSetup, num_parameters: int, num_trained: int, num_micro_batches: int) -> float:
    """Return the bytes that a rank sends in an optimizer step. A step is no faster than its links allow.

    FSDP gathers the weights in bfloat16 twice in each micro-batch, and reduces the gradients in float32. DDP sends each
    gradient twice: to be added up, and the sum.
    """
    share = 1 - 1 / setup.num_ranks
    if setup.strategy == "fsdp":
        reductions = 1 if setup.accumulates_whole else num_micro_batches
        return share * (2 * 2 * num_parameters * num_micro_batches + 4 * num_trained * reductions)
    return share * 2 * 4 * num_trained if setup.strategy == "ddp" else 0.0


def host_bytes(num_parameters: int) -> int:
    """Return the memory of the first node for weights in float32: when they are read, and when the export is checked.

    Only the first rank holds weights, and it releases them when they are on the devices.
    """
    return BYTES["float32"] * num_parameters


def saved_bytes(num_parameters: int, num_adapted: int | None, dtype: str, num_checkpoints: int) -> tuple[int, int]:
    """Return the bytes of `model/` and the adapter of a run, and those of its other checkpoints.

    Args:
        num_adapted: Parameters of the adapters, or None if all weights are tuned.
        dtype: Type of the saved weights.
        num_checkpoints: Checkpoints of the run. The last one is the model or the adapter.
    """
    model = BYTES[dtype] * num_parameters
    checkpoint = model if num_adapted is None else BYTES["float32"] * num_adapted
    return model + (0 if num_adapted is None else checkpoint), checkpoint * (num_checkpoints - 1)


def states_bytes(num_trained: int, keep: int) -> int:
    """Return the bytes of the training states on disk: a new one is complete before the oldest is removed."""
    return 12 * num_trained * (keep + 1)
