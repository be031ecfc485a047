"""Files of a sweep that is run: its manifest, its lock, and the config of each job."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from sftmix.artifacts.files import open_lock, try_lock, write_json
from sftmix.artifacts.hashes import fingerprint
from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.config.schema import Config, from_dict
from sftmix.errors import InputError
from sftmix.sweep import CONFIG_FILE
from sftmix.sweep.jobs import Job, PlannedRun
from sftmix.sweep.store import LOCK, SWEEPS, read_content

CONFIGS, LOGS = "configs", "logs"  # folders of a sweep


def sweep_folder(root: Path, name: str, runs: Sequence[PlannedRun]) -> Path:
    """Return the folder of a sweep: the same for the same runs, however they are run."""
    content = [[list(run.overrides), run.plan.target.folder.name] for run in runs]
    return root / SWEEPS / f"{name}-{fingerprint({'runs': content})}"


def write_manifest(
    folder: Path, head: Mapping[str, Any], runs: Sequence[PlannedRun], jobs: Sequence[Job], shared: Sequence[Job]
) -> None:
    """Write `manifest.json` as a whole. Folders of artifacts are relative to the root.

    Args:
        head: `name` of the ablation or `sweep`, the `command` that started the sweep, `common` overrides, and the
            arguments that say where configs are read, `composed_by`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        **head,
        "runs": [_entry(run, job) for run, job in zip(runs, jobs, strict=True)],
        "shared": [{"confidence": job.makes.folder.name, **job.as_dict()} for job in shared],
    }
    write_json(folder / MANIFEST, content)


def _entry(run: PlannedRun, job: Job) -> dict[str, Any]:
    confidence = run.plan.confidence
    return {
        "overrides": list(run.overrides),
        "target": run.plan.target.folder.name,
        "baseline": run.plan.baseline.folder.name,
        "confidence": None if confidence is None else confidence.folder.name,
        **job.as_dict(),
    }


def restore_jobs(folder: Path, jobs: Sequence[Job], shared: Sequence[Job]) -> None:
    """Restore what an earlier call has written of its jobs: time, log and SLURM id; state and cause if not done.

    Raises:
        InputError: If the manifest was not written by a sweep.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return
    content = read_content(folder)
    try:
        known = {entry["target"]: entry for entry in content["runs"]}
        known |= {entry["confidence"]: entry for entry in content["shared"]}
        for job in {id(job): job for job in (*shared, *jobs)}.values():
            entry = known.get(job.makes.folder.name)
            if entry is not None:
                job.seconds = entry["seconds"]
                job.log = None if entry["log"] is None else Path(entry["log"])
                job.slurm_id = entry["slurm_id"]
                if not job.makes.is_complete:
                    job.state, job.cause = entry["state"], entry["cause"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: not the manifest of a sweep ({type(error).__name__}: {error})") from None


def write_config(folder: Path, job: Job) -> Path:
    """Write the resolved config of a job, readable only by its owner, and return the absolute path of the file.

    A running or queued job keeps the file that was written when the job was started.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"{job.makes.folder.name}.json").resolve()
    write_json(file, {"command": ["train.py", *job.arguments], "config": job.config}, mode=0o600)
    return file


def read_config(arguments: Sequence[str]) -> tuple[list[str], Config]:
    """Read the arguments after `--config-file`: a file of `write_config` or the `run.json` of a run, and a root.

    Returns:
        The arguments of train.py that the file records, and the config.

    Raises:
        InputError: If there is not exactly one file, or the file holds no config.
    """
    roots = [argument for argument in arguments if argument.startswith("root=")]
    files = [argument for argument in arguments if argument not in roots]
    if len(files) != 1 or len(roots) > 1:
        raise InputError(f"{CONFIG_FILE}: expected one file, run.json of a run or of {CONFIGS} of a sweep, and root=")
    try:
        content = read_json(Path(files[0]))
        config = from_dict(content["config"])
        command = [str(argument) for argument in content["command"][1:]]
    except (OSError, ValueError, KeyError, TypeError, OmegaConfBaseException) as error:
        cause = " ".join(str(error).split("\n")[0].split())
        raise InputError(f"{CONFIG_FILE} {files[0]}: not the config of a run ({cause})") from None
    for root in roots:
        config.root = str(Path(root.removeprefix("root=")).expanduser())
    return [*command, *roots], config


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a sweep, so that no other process runs it.

    Raises:
        InputError: If another process runs the sweep.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open_lock(folder / LOCK) as handle:
        if not try_lock(handle):
            raise InputError(f"{folder}: another process runs this sweep; mode=list shows its progress")
        yield
