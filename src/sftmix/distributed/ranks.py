"""The rank of a process among those of a stage, and how to read the rank that torchrun or srun has given."""

import atexit
import os
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sftmix.errors import ConfigError

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # MASTER_ADDR is also set where nothing was started
LINGER = 3.0  # seconds
REMEDY = "or set trainer.launcher=own if these variables are left over from another program"


class Ranks(NamedTuple):
    """The rank of a process among others."""

    rank: int = 0  # Index of the process over all nodes
    local_rank: int = 0  # Index of the process on its node, which is the index of its device
    world_size: int = 1  # Number of processes over all nodes
    num_local: int = 1  # Number of processes of a node

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.world_size // self.num_local


SINGLE = Ranks()


class StartedRanks(NamedTuple):
    """Processes that another program has started."""

    by: str  # torchrun or srun
    ranks: Ranks  # rank of this process


def started_ranks(variables: Mapping[str, str] = os.environ) -> StartedRanks | None:
    """Return the rank that torchrun or srun has given to this process.

    Return None for a single process, and for one task of srun on each node: such a process starts the ranks itself.

    Raises:
        ConfigError: If the variables are incomplete or contradict each other.
    """
    if any(name in variables for name in RANK_VARIABLES):
        rank, local_rank, world_size = _counts(variables, *RANK_VARIABLES, also=("MASTER_ADDR", "MASTER_PORT"))
        names = (*RANK_VARIABLES, "LOCAL_WORLD_SIZE")
        num_local = _counts(variables, names[3])[0] if names[3] in variables else world_size
        return _started("torchrun", Ranks(rank, local_rank, world_size, num_local), variables, names)
    if "SLURM_STEP_ID" not in variables:
        return None
    prefix = "SLURM_STEP_NUM_" if "SLURM_STEP_NUM_TASKS" in variables else "SLURM_N"
    names = ("SLURM_PROCID", "SLURM_LOCALID", f"{prefix}TASKS", f"{prefix}NODES")
    if names[2] not in variables:
        return None
    rank, local_rank, num_tasks, num_nodes = _counts(variables, *names)
    if num_tasks <= num_nodes:
        return None  # a task on each node, which starts the processes of its node
    # tasks that are spread unevenly over the nodes fail the check
    num_local = num_tasks // num_nodes if num_tasks % max(1, num_nodes) == 0 else 0
    return _started("srun", Ranks(rank, local_rank, num_tasks, num_local), variables, names)


def _counts(variables: Mapping[str, str], *names: str, also: Sequence[str] = ()) -> list[int]:
    """Return the values of variables as integers. Raise a ConfigError if one of them or of `also` is not set."""
    missing = [name for name in (*names, *also) if name not in variables]
    if missing:
        given = [name for name in (*RANK_VARIABLES, "SLURM_STEP_ID") if name in variables]
        raise ConfigError(
            f"environment: {', '.join(given)} set, {', '.join(missing)} not set; start the program by torchrun or "
            f"srun, which set all of them, {REMEDY}"
        )
    for name in names:
        if not variables[name].isdecimal():
            raise ConfigError(f"environment: {name}={variables[name]}, expected an integer from 0; unset it, {REMEDY}")
    return [int(variables[name]) for name in names]


def _started(by: str, ranks: Ranks, variables: Mapping[str, str], names: tuple[str, ...]) -> StartedRanks | None:
    """Return ranks, or None if there is only one. Raise a ConfigError if the numbers contradict each other."""
    num_local = ranks.num_local
    is_divided = num_local > 0 and ranks.world_size % num_local == 0
    if not is_divided or ranks.rank >= ranks.world_size or ranks.rank % num_local != ranks.local_rank:
        shown = ", ".join(f"{name}={variables[name]}" for name in names if name in variables)
        raise ConfigError(
            f"environment: {shown} contradict each other; expected the same number of processes on each node, numbered "
            f"node by node: start the program by {by} so, {REMEDY}"
        )
    return StartedRanks(by, ranks) if ranks.world_size > 1 else None


_outputs: list[int] = []  # standard output and error of a process whose output is discarded


def discard_output_of_followers() -> None:
    """Discard what this process prints unless it is the first: each process would print the same.

    Such a process also ends some seconds later than the first: torchrun ends all processes when one has failed, and the
    first one has to print why. `restore_output` undoes both.
    """
    try:
        started = started_ranks()
    except ConfigError:  # reported when the config is checked
        return
    if started is not None and not started.ranks.is_first:
        _outputs[:] = [os.dup(1), os.dup(2)]
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        atexit.register(time.sleep, LINGER)


def restore_output(*, and_standard_output: bool) -> None:
    """Print errors again, and standard output too if asked, where `discard_output_of_followers` has discarded both."""
    if _outputs:
        atexit.unregister(time.sleep)
        os.dup2(_outputs[1], 2)
        if and_standard_output:
            os.dup2(_outputs[0], 1)
