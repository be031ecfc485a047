"""Run a stage in this process, in the processes of torchrun or srun, or in new processes.

`distributed.launch` starts `python -m sftmix.stages.rank FILE LOCAL_RANK` as a process of a stage. The file holds the
resolved config, so Hydra composes nothing there.
"""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftmix.config.schema import Config, Trainer, from_dict, to_dict
from sftmix.distributed.device import Device
from sftmix.distributed.launch import be_rank, launch
from sftmix.distributed.ranks import SINGLE, Ranks, StartedRanks, restore_output, started_ranks
from sftmix.distributed.stopping import StopRequest
from sftmix.errors import INTERRUPTED, ConfigError, InputError, StageError, Stopped

if TYPE_CHECKING:
    from sftmix.distributed.shared import SharedProcesses
    from sftmix.stages.context import RunContext, StageSpec

_shared: "SharedProcesses | None" = None  # the processes of torchrun or srun, while they share the stages


def run_stage_on_ranks(spec: "StageSpec", context: "RunContext", device: Device) -> int:
    """Run a stage in this process, in those of torchrun or srun, or in new processes.

    Returns:
        The exit code of a stop that was requested when the stage was already complete, or 0.

    Raises:
        InputError: If the input is wrong, or a file cannot be read or written.
        Stopped: If a stop was requested.
        StageError: If a process failed otherwise.
    """
    config, trainer = to_dict(context.config), context.config.trainer
    content = {"spec": spec.as_dict(), "config": config, "device": device._asdict(), "arguments": sys.argv[1:]}
    if _shared is not None:
        _shared.send(content)
        _run(spec, context, device, _shared.ranks, _shared.store)
    elif device.is_apart:
        return launch("sftmix.stages.rank", content, device, trainer.stop_signal, trainer.rdzv_endpoint)
    else:
        _run(spec, context, device, SINGLE, None)
    return 0


def _run(spec: "StageSpec", context: "RunContext", device: Device, ranks: Ranks, meeting: Any) -> None:
    """Run a stage as one of the processes that share it."""
    from sftmix.distributed.process_group import barrier, init_process_group
    from sftmix.stages.context import RankContext, run_stage

    trainer = context.config.trainer
    stop = StopRequest(["SIGTERM", trainer.stop_signal])
    with stop.listening():
        if device.strategy != "single":
            init_process_group(ranks, device.name, meeting, trainer.rdzv_timeout)
        if device.accelerator == "gpu":
            import torch

            torch.backends.cuda.enable_cudnn_sdp(False)  # it builds a plan for each new length
        run_stage(spec, context, RankContext(device, ranks, stop))
        barrier()  # a stage ends on every node when its files are written


def run_content(content: dict[str, Any], ranks: Ranks, meeting: Any) -> None:
    """Run the stage that another process has described."""
    from sftmix.stages.context import RunContext, StageSpec

    config = from_dict(content["config"])
    config.trainer.progress_bar = config.trainer.progress_bar and ranks.is_first
    sys.argv[1:] = content["arguments"]
    _run(StageSpec.from_dict(content["spec"]), RunContext(config), Device(**content["device"]), ranks, meeting)


def _be_launched(content: dict[str, Any], local_rank: int) -> None:
    from sftmix.distributed.process_group import destroy_process_group

    device, node_rank = Device(**content["device"]), content["config"]["trainer"]["node_rank"]
    ranks = Ranks(node_rank * device.num_local + local_rank, local_rank, device.world_size, device.num_local)
    run_content(content, ranks, content["meeting"])
    destroy_process_group()


def started_by(trainer: Trainer) -> StartedRanks | None:
    """Return the rank that torchrun or srun has given to this process, unless `trainer.launcher=own`.

    The settings of devices and nodes are set to the processes that were started. Environment variables that are
    incomplete or contradict each other or the config are refused.
    """
    if trainer.launcher == "own":
        return None
    started = started_ranks()
    if started is None:
        if trainer.launcher == "environment":
            raise ConfigError(
                "trainer.launcher=environment: torchrun or srun has to start several processes, and this is a single "
                "one; set trainer.launcher=auto"
            )
        return None
    by, ranks = started
    if trainer.strategy == "single":
        remedy = "choose trainer=ddp or trainer=fsdp, or set trainer.launcher=own"
        raise ConfigError(f"trainer.strategy=single: {by} has started {ranks.world_size} processes, {remedy}")
    if (endpoint := trainer.rdzv_endpoint) is not None:
        remedy = "leave out trainer.num_nodes and trainer.rdzv_endpoint"
        raise ConfigError(f"trainer.rdzv_endpoint={endpoint}: {by} decides where its processes meet, {remedy}")
    if trainer.devices not in (None, ranks.num_local):
        found = f"{by} has started {ranks.num_local} processes on each node"
        remedy = "leave out trainer.devices or set trainer.launcher=own"
        raise ConfigError(f"trainer.devices={trainer.devices}: {found}, {remedy}")
    trainer.devices, trainer.num_nodes = ranks.num_local, ranks.num_nodes
    return started


@contextmanager
def sharing_processes(config: Config) -> Iterator[None]:
    """Share the stages of a run with the other processes of torchrun or srun, if the program was started by them.

    The first process continues, and the others run the stages that the first one begins. All end with the first one,
    and all end when one fails, with one exit code and one message of the process that failed first.
    """
    global _shared
    started = started_by(config.trainer)
    if started is None:
        restore_output(and_standard_output=True)
        yield
        return
    if config.mode == "certify":
        raise ConfigError(f"mode=certify: it starts its own processes, run python train.py without {started.by}")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # torch raises its errors as exceptions too
    from sftmix.distributed.process_group import destroy_process_group
    from sftmix.distributed.shared import GRACE, SharedProcesses

    shared = SharedProcesses(started, config.trainer.rdzv_timeout)
    restore_output(and_standard_output=False)
    try:
        if started.ranks.is_first:
            _shared = shared
            yield
            destroy_process_group()
        else:
            _follow(shared)
    except BaseException as error:
        if isinstance(error, Stopped) and not started.ranks.is_first:
            time.sleep(GRACE)  # the first process still marks its training state as complete, then it ends this one
        code = shared.end(_exit_code(error))
        if code is not None:  # another process has printed why
            sys.stdout.flush()
            os._exit(code)
        raise
    finally:
        _shared = None
    shared.end(0)


def _follow(shared: "SharedProcesses") -> None:
    """Run the stages that the first process begins, until that process ends this one."""
    while True:
        content = shared.receive()
        try:
            run_content(content, shared.ranks, shared.store)
        except InputError:
            raise
        except Exception:
            rank, world_size, *_ = shared.ranks
            raise StageError(f"rank {rank} of {world_size} failed first:\n{traceback.format_exc()}") from None


def _exit_code(error: BaseException) -> int:
    """Return the exit code that the command line gives to an error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, Stopped):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return 2 if isinstance(error, (InputError, OSError)) else 1


if __name__ == "__main__":
    be_rank(_be_launched)
