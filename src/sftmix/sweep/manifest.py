"""The file that a sweep leaves: its rows, the artifacts they mean, and what became of each job."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from sftmix.artifacts.files import open_lock, try_lock, write_json
from sftmix.artifacts.hashes import fingerprint
from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.cli.arguments import CONFIG_FILE
from sftmix.config.schema import Config, from_dict
from sftmix.errors import InputError
from sftmix.sweep.jobs import Job, Row
from sftmix.sweep.store import LOCK, SWEEPS

CONFIGS, LOGS = "configs", "logs"  # folders of a sweep


def sweep_folder(root: Path, name: str, rows: Sequence[Row]) -> Path:
    """Where a sweep is written: the same for the same rows, however they are run."""
    content = [[list(row.overrides), row.plan.target.folder.name] for row in rows]
    return root / SWEEPS / f"{name}-{fingerprint({'rows': content})}"


def write_manifest(
    folder: Path,
    name: str,
    command: str,
    common: Sequence[str],
    rows: Sequence[Row],
    jobs: Sequence[Job],
    shared: Sequence[Job],
    composed_by: Sequence[str] = (),
) -> None:
    """Write `manifest.json` as a whole; folders of artifacts are relative to the root."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": name,
        "command": command,
        "common": list(common),
        "composed_by": list(composed_by),
        "rows": [_row(row, job) for row, job in zip(rows, jobs, strict=True)],
        "shared": [{"confidence": job.makes.folder.name, **job.as_dict()} for job in shared],
    }
    write_json(folder / MANIFEST, content)


def _row(row: Row, job: Job) -> dict[str, Any]:
    confidence = row.plan.confidence
    return {
        "overrides": list(row.overrides),
        "target": row.plan.target.folder.name,
        "baseline": row.plan.baseline.folder.name,
        "confidence": None if confidence is None else confidence.folder.name,
        **job.as_dict(),
    }


def read_back(folder: Path, jobs: Sequence[Job], shared: Sequence[Job]) -> None:
    """Take over what an earlier call has written of jobs that are not done: cause, log, time, SLURM's number.

    Raises:
        InputError: the file was not written by a sweep.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return
    try:
        content = read_json(file)
        known = {entry["target"]: entry for entry in content["rows"]}
        known |= {entry["confidence"]: entry for entry in content["shared"]}
        for job in {id(job): job for job in (*shared, *jobs)}.values():
            entry = known.get(job.makes.folder.name)
            if entry is not None:
                job.seconds = entry["seconds"]
                job.log = None if entry["log"] is None else Path(entry["log"])
                job.slurm_id = entry["slurm_id"]
                if not job.makes.is_complete:
                    job.state, job.cause = entry["state"], entry["cause"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: no manifest of a sweep ({type(error).__name__}: {error})") from None


def write_config(folder: Path, job: Job) -> Path:
    """Write the resolved configuration of a job, readable by its owner only, and return the absolute path of the file.

    A job that is running or queued keeps the file that was written when it was started.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"{job.makes.folder.name}.json").resolve()
    write_json(file, {"arguments": list(job.arguments), "config": job.config}, mode=0o600)
    return file


def read_config(files: Sequence[str]) -> tuple[list[str], Config]:
    """Read back a file of `write_config`: the arguments that mean the same, and the configuration.

    Raises:
        InputError: There is not exactly one file, or the sweep did not write this one.
    """
    if len(files) != 1:
        raise InputError(f"{CONFIG_FILE}: expected one file, a sweep writes it to its folder {CONFIGS}")
    try:
        content = read_json(Path(files[0]))
        return [str(argument) for argument in content["arguments"]], from_dict(content["config"])
    except (OSError, ValueError, KeyError, TypeError, OmegaConfBaseException) as error:
        cause = " ".join(str(error).split("\n")[0].split())
        raise InputError(f"{CONFIG_FILE} {files[0]}: not a configuration of a sweep ({cause})") from None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a sweep, so that no other process runs it.

    Raises:
        InputError: another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open_lock(folder / LOCK) as handle:
        if not try_lock(handle):
            raise InputError(f"{folder}: another process runs this sweep; mode=list shows how far it is")
        yield
