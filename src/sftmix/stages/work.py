"""From a task to the stage that does it: in this process, or in each of those that share it."""

from safetensors import SafetensorError

from sftmix.errors import InputError, explain_os_error
from sftmix.stages.confidence import write_confidence
from sftmix.stages.context import Materials
from sftmix.stages.invariance.gradients import write_gradients
from sftmix.stages.reference import write_ntp
from sftmix.stages.target import write_target
from sftmix.stages.task import Task
from sftmix.stages.worker import Worker


def work(task: Task, materials: Materials, worker: Worker) -> None:
    """Do a stage, or a rank's share of it.

    Raises:
        InputError: If the input is wrong, or a file cannot be read or written.
    """
    try:
        _work(task, materials, worker)
    except BrokenPipeError:  # of the standard output, as of `| head`: the command line ends without a message
        raise
    except OSError as error:
        raise InputError(explain_os_error(error)) from error
    except SafetensorError as error:
        raise InputError(f"{task.folder}: {' '.join(str(error).split())}; run the same command again") from error


def _work(task: Task, materials: Materials, worker: Worker) -> None:
    if task.stage == "confidence":
        write_confidence(task, materials, worker)
    elif task.stage == "certify":
        write_gradients(task, materials, worker)
    elif task.stage == "target":
        write_target(task, materials, worker)
    else:
        write_ntp(task, materials, worker)
