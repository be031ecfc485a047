"""Files that a running sweep writes: its manifest, and the config of each job."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from sftmix.artifacts.files import write_json
from sftmix.artifacts.hashes import fingerprint
from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.config.schema import Config, from_dict
from sftmix.errors import InputError, first_line
from sftmix.sweep import CONFIG_FILE
from sftmix.sweep.jobs import Job, PlannedRun
from sftmix.sweep.store import SWEEPS, read_content

CONFIGS, LOGS = "configs", "logs"  # Folders of a sweep


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
    content = {
        **head,
        "runs": [
            {
                "overrides": list(run.overrides),
                "target": run.plan.target.folder.name,
                "baseline": run.plan.baseline.folder.name,
                "confidence": None if run.plan.confidence is None else run.plan.confidence.folder.name,
                **job.as_dict(),
            }
            for run, job in zip(runs, jobs, strict=True)
        ],
        "shared": [{"confidence": job.makes.folder.name, **job.as_dict()} for job in shared],
    }
    write_json(folder / MANIFEST, content)


def restore_jobs(folder: Path, jobs: Sequence[Job]) -> None:
    """Restore what an earlier command has written of the jobs: time, log and SLURM id; state and cause if not done.

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
        for job in jobs:
            if (entry := known.get(job.makes.folder.name)) is not None:
                job.seconds = entry["seconds"]
                job.log = None if entry["log"] is None else Path(entry["log"])
                job.slurm_id = entry["slurm_id"]
                if not job.makes.is_complete:
                    job.state, job.cause = entry["state"], entry["cause"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: not the manifest of a sweep ({type(error).__name__}: {error})") from None


def prepare_job(folder: Path, job: Job) -> tuple[Path, Path]:
    """Write the resolved config of a job, readable only by its owner, into the folder of the sweep.

    Returns:
        The absolute path of the config, and the path of the log of the job, whose folder exists.
    """
    for name in (CONFIGS, LOGS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    file = (folder / CONFIGS / f"{job.makes.folder.name}.json").resolve()
    write_json(file, {"command": ["train.py", *job.arguments], "config": job.config}, mode=0o600)
    return file, folder / LOGS / f"{job.makes.folder.name}.log"


def read_config(arguments: Sequence[str]) -> tuple[list[str], Config]:
    """Read the arguments after `--config-file`: a file of `prepare_job` or the `run.json` of a run, and a root.

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
        raise InputError(f"{CONFIG_FILE} {files[0]}: not the config of a run ({first_line(error)})") from None
    for root in roots:
        config.root = str(Path(root.removeprefix("root=")).expanduser())
    return [*command, *roots], config
