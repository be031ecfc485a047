"""Artifacts: folders that one stage writes and others read, complete or absent."""

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.files import PARTIAL, is_locked, linked, open_lock, remove, sync, sync_folder, try_lock
from sftmix.artifacts.hashes import NAME_BYTES, fingerprint
from sftmix.artifacts.manifest import MANIFEST, check_sums, damaged, read_manifest, remember_verified, seal
from sftmix.errors import InputError

FIRST_EPOCH = "first_epoch"  # the field `confidence` of a run that was split by the losses of its own first epoch
STATES, CHECKPOINTS, DROPPED = "states", "checkpoints", "checkpoints.dropped"
OLD = ".old"
NOTE = ".drop-after-"
TEMPORARY = re.compile(r"\..+\.\d+")  # `.<name>.<process id>`


@dataclass(frozen=True)
class Artifact:
    """A folder `<title>-<fingerprint>` that a stage writes and others read."""

    root: Path
    title: str  # Readable part of the name
    fields: Mapping[str, Any]  # Everything that the content depends on

    @property
    def fingerprint(self) -> str:
        """The first 8 hexadecimal digits of the hash of the fields."""
        return fingerprint(self.fields)

    @property
    def folder(self) -> Path:
        """Path of the complete artifact. A title that is too long for a file system is cut."""
        title = re.sub(r"[^A-Za-z0-9._-]+", "_", self.title)[: NAME_BYTES - 9]
        return self.root / f"{title}-{self.fingerprint}"

    @property
    def partial(self) -> Path:
        """Path of the artifact while it is made."""
        return self.folder.with_name(self.folder.name + PARTIAL)

    @property
    def is_complete(self) -> bool:
        return is_complete(self.folder)

    def check(self) -> None:
        """Check the manifest of a complete artifact, and finish the tidying that a killed command left.

        Raises:
            InputError: If the manifest is damaged, or is the manifest of another artifact.
        """
        if read_manifest(self.folder).get("fingerprint") != self.fingerprint:
            raise damaged(self.folder / MANIFEST, "is the manifest of another artifact")
        tidy(self.folder)


def is_complete(folder: Path) -> bool:
    """Return whether a folder is a complete artifact."""
    return (folder / MANIFEST).is_file()


class Found(NamedTuple):
    """A complete artifact under a root."""

    folder: Path
    fields: Mapping[str, Any]
    completed: str  # Time in ISO format


def find_artifacts(root: Path, kind: str) -> tuple[list[Found], list[tuple[Path, InputError]]]:
    """Return the complete artifacts of a kind, such as run, by name, and each folder whose manifest is damaged."""
    found, unreadable = list[Found](), list[tuple[Path, InputError]]()
    for file in sorted(root.glob(f"*/{MANIFEST}")):
        folder = file.parent
        if folder.suffix in (PARTIAL, OLD) or folder.name.startswith("."):
            continue
        try:
            manifest = read_manifest(folder)
            if not isinstance(fields := manifest.get("fields"), dict):
                raise InputError(f"{file}: no fields in it")
            if fields.get("kind") == kind == "run" and not isinstance(fields.get("seed"), int):
                raise InputError(f"{file}: no seed in it")
            if fields.get("kind") == kind:
                found.append(Found(folder, fields, manifest.get("completed", "")))
        except InputError as error:
            unreadable.append((folder, error))
    return found, unreadable


def folder_of(given: str, root: Path, key: str) -> Path:
    """Return the folder of a path, or of a name under a root. An artifact is tidied first.

    Raises:
        InputError: If there is no such folder.
    """
    for folder in (Path(os.path.expanduser(given)), root / given):
        if folder.is_dir():
            tidy(folder.resolve())
            return folder.resolve()
    raise InputError(f"{key}={given}: no such folder, here or in {root}")


@contextmanager
def making(
    artifact: Artifact, *, resume: bool = False, usable: Callable[[Path], bool] = lambda _: True
) -> Iterator[Path | None]:
    """Make an artifact: yield the folder to write into, or None if the artifact is complete.

    If two processes make the same artifact, one makes it and the other waits. The folder is renamed at the end. An
    exception leaves the incomplete folder under its `.partial` name.

    Args:
        resume: Keep the files of an earlier attempt that was not finished.
        usable: Whether the existing artifact can be used. If not, it is made again and replaced.

    Raises:
        InputError: If the manifest of a complete artifact is damaged, or a symbolic link has the name of the folder.
    """
    if artifact.is_complete and usable(artifact.folder):
        artifact.check()
        yield None
        return
    partial, lock_file = artifact.partial, _lock_of(artifact.folder)
    if lock_file.parent.is_symlink():
        raise linked(lock_file.parent, "folder")
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(lock_file) as handle:
        if not try_lock(handle):
            print(f"another process is making {artifact.folder.name}: waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        if artifact.is_complete and usable(artifact.folder):
            yield None
            return
        if partial.is_symlink():
            raise linked(partial, "folder")
        if _is_sealed(artifact):  # a killed process has written everything and not renamed the folder
            _rename(artifact)
            yield None
            return
        if not resume:
            remove(partial)
        partial.mkdir(exist_ok=True)
        yield partial
        _remove_leftovers(partial)
        sync_folder(partial)
        check_sums(partial)
        completed = datetime.now(UTC).isoformat(timespec="seconds")
        head = {"title": artifact.title, "fingerprint": artifact.fingerprint, "completed": completed}
        seal(partial, {**head, "fields": artifact.fields})
        _rename(artifact)
        remember_verified(artifact.folder)


def _rename(artifact: Artifact) -> None:
    """Rename a sealed folder to the name of the artifact and replace an older artifact of that name."""
    old = artifact.folder.with_name(artifact.folder.name + OLD)
    if artifact.folder.exists():
        remove(old)
        artifact.folder.rename(old)
    artifact.partial.rename(artifact.folder)
    sync(artifact.root)
    remove(old)


def _is_sealed(artifact: Artifact) -> bool:
    """Return whether an unfinished folder has its manifest, so that only the renaming is missing.

    A damaged manifest is removed.
    """
    with suppress(InputError, FileNotFoundError):
        content = read_manifest(artifact.partial)
        if content.get("fingerprint") == artifact.fingerprint and "files" in content:
            return True
    (artifact.partial / MANIFEST).unlink(missing_ok=True)
    return False


def _lock_of(folder: Path) -> Path:
    return folder.parent / ".locks" / f"{folder.name}.lock"


def is_being_made(folder: Path) -> bool:
    """Return whether a process of this machine is making an artifact, given its `.partial` folder."""
    return is_locked(_lock_of(folder.with_name(folder.name.removesuffix(PARTIAL))))


def tidy(folder: Path) -> None:
    """Remove what a killed command has left in a complete artifact.

    Training states, dropped checkpoints, the replaced artifact and temporary files of killed writes are removed. Files
    that a living process is writing stay: the process holds a lock on them. A folder that cannot be written, has a
    damaged manifest, or belongs to another program stays unchanged.
    """
    if not is_complete(folder):
        return
    undone = (folder / STATES, folder / DROPPED, folder.with_name(f"{folder.name}{OLD}"))
    with suppress(OSError, InputError):
        if "fingerprint" not in read_manifest(folder):
            return
        _remove_leftovers(folder)
        drops = list(folder.glob(f"{NOTE}*"))
        if not (drops or any(map(os.path.lexists, undone))) or not _lock_of(folder).parent.is_dir():
            return
        with open_lock(_lock_of(folder)) as handle:
            if not try_lock(handle):  # another process makes the artifact again
                return
            for path in undone:
                remove(path)
            if any(is_complete(folder.with_name(drop.name.removeprefix(NOTE))) for drop in drops):
                drop_checkpoints(folder)


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of killed writes. Files that a living process is writing are locked."""
    for path in [*folder.rglob("*")]:
        if path.relative_to(folder).parts[0] in ("wandb", STATES):
            continue
        if path.name.endswith(PARTIAL) and path.is_dir():
            remove(path)
        elif not TEMPORARY.fullmatch(path.name) or path.is_dir():
            continue
        elif path.is_symlink() or not is_locked(path, unreadable=True):
            path.unlink(missing_ok=True)


def note_drop(folder: Path, name: str) -> None:
    """Note in an NTP run that the next command drops its checkpoints if another artifact is complete."""
    (folder / f"{NOTE}{name}").touch()


def forget_drops(folder: Path) -> None:
    """Remove the notes of `note_drop`: the checkpoints are kept."""
    with suppress(OSError):
        for note in folder.glob(f"{NOTE}*"):
            note.unlink(missing_ok=True)


def drop_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of an NTP run. Its last checkpoint is also its tuned model, which stays.

    The folder is renamed first, so that a killed command leaves all checkpoints or none.
    """
    dropped = folder / DROPPED
    if (folder / CHECKPOINTS).is_dir():
        remove(dropped)
        (folder / CHECKPOINTS).rename(dropped)
    remove(dropped)
    forget_drops(folder)
