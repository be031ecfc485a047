"""One process of a stage: `python -m sftmix.stages.rank TASK.json LOCAL_RANK`, started by `distributed.launch`.

It knows nothing of Hydra: the resolved configuration stands in the file. What goes wrong is left in a file beside it,
with the time, so that the first cause can be told from its consequences.
"""

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import read_json
from sftmix.distributed.stopping import die_with
from sftmix.errors import TRY_AGAIN, InputError, Stopped

FAILED = 3


def main(file: Path, local_rank: int) -> int:
    """Do a rank's part of a stage; the exit code."""
    content = read_json(file)
    die_with(int(content["parent"]))
    try:
        _work(content, local_rank)
    except Stopped as stopped:
        leave(file, local_rank, "stopped", str(stopped))
        return TRY_AGAIN
    except InputError as error:
        leave(file, local_rank, "input", str(error))
        return FAILED
    except BaseException:
        leave(file, local_rank, "traceback", traceback.format_exc())
        return FAILED
    return 0


def _work(content: dict[str, Any], local_rank: int) -> None:
    from sftmix.config.schema import from_dict
    from sftmix.distributed import process_group as group
    from sftmix.distributed.device import Device
    from sftmix.distributed.stopping import StopRequest
    from sftmix.stages.context import RankContext, RunContext, StageSpec, run_stage

    config, device = from_dict(content["config"]), Device(**content["device"])
    trainer = config.trainer
    sys.argv[1:] = content["arguments"]
    rank = trainer.node_rank * device.num_local + local_rank
    ranks = group.Ranks(rank, local_rank, device.world_size, device.num_local)
    stop = StopRequest(["SIGTERM", trainer.stop_signal])
    with stop.listening():
        if device.strategy != "single":
            group.init_process_group(ranks, device.name, content["meeting"], trainer.rdzv_timeout)
        trainer.progress_bar = trainer.progress_bar and ranks.is_first
        run_stage(StageSpec.from_dict(content["task"]), RunContext(config), RankContext(device, ranks, stop))
        group.barrier()  # on other nodes too a stage ends when its files are written
        group.destroy_process_group()


def leave(file: Path, local_rank: int, kind: str, text: str) -> None:
    """Leave beside the task file why this process ends, and when."""
    write_json(file.with_name(f"end-{local_rank}.json"), {"kind": kind, "text": text, "time": time.monotonic()})


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of a library that wait for lost ranks would keep it alive
