"""Files that pass between stages: artifacts with their checksums, and hashes of input files.

An artifact is a folder `<readable name>-<8 hex digits of the fingerprint>`. Its `manifest.json` holds the fields that
the fingerprint covers, and the size and checksum of every file. While an artifact is made, its folder is called
`<name>.partial`. The folder is renamed when everything is on the disk.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import xxhash

from sftmix.errors import InputError
from sftmix.quoting import shell_command

MANIFEST = "manifest.json"
CHECKSUM = "xxh3_128"  # finds damage at several GB/s; what names content is SHA-256
STATES, CHECKPOINTS, DROPPED = "states", "checkpoints", "checkpoints.dropped"
UNSEALED = (STATES, "wandb", "evaluation")  # removed or written after an artifact is complete
READ_SUFFIXES = {".arrow", ".parquet", ".json", ".safetensors", ".bin", ".pt", ".model", ".jinja", ".txt"}
VERIFIED = "SFTMIX_VERIFIED"  # environment variable: what the parent process has verified
NOTE = ".drop-after-"
TEMPORARY = re.compile(r"\..+\.\d+")  # `.<name>.<process id>`
SUMS = re.compile(r"\.(.+)\.sums\.json")
NAME_BYTES = 225  # file systems take 255; suffixes such as `.<process id>.partial` need the rest
RACY_NS = 2 * 10**9  # a file that changed so shortly before it was hashed may change again within one clock tick
BLOCK = 2**22
CONFIDENCE_COLUMNS = ("example_id", "checkpoint", "num_tokens", "nll")


def fingerprint(fields: Mapping[str, Any]) -> str:
    """Return the first 8 hexadecimal digits of the hash of resolved fields, independent of their order."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def short_name(name: str, most: int = NAME_BYTES) -> str:
    """Return a name of at most so many bytes: a longer one is cut and ends with a hash of the whole name."""
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) <= most:
        return name
    return f"{encoded[: most - 9].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:8]}"


@dataclass(frozen=True)
class Artifact:
    """A folder that a stage writes and others read.

    Attributes:
        root: Folder of all artifacts.
        title: Readable part of the name.
        fields: Everything that the content depends on.
    """

    root: Path
    title: str
    fields: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """The hash of its fields."""
        return fingerprint(self.fields)

    @property
    def folder(self) -> Path:
        """Path of the complete artifact. A title that is too long for a file system is cut."""
        title = re.sub(r"[^A-Za-z0-9._-]+", "_", self.title)[: NAME_BYTES - 9]
        return self.root / f"{title}-{self.fingerprint}"

    @property
    def partial(self) -> Path:
        """Path of the artifact while it is made."""
        return self.folder.with_name(self.folder.name + ".partial")

    @property
    def is_complete(self) -> bool:
        """Whether the artifact is complete."""
        return (self.folder / MANIFEST).is_file()

    def check(self) -> None:
        """Check the manifest of a complete artifact, and finish the tidying that a killed command left.

        Raises:
            InputError: If the manifest is damaged, or is the manifest of another artifact.
        """
        if read_manifest(self.folder).get("fingerprint") != self.fingerprint:
            raise damaged(self.folder / MANIFEST, "is the manifest of another artifact")
        tidy(self.folder)


def complete_folders(root: Path, pattern: str = "*") -> list[Path]:
    """Return the complete artifacts under a root, by name: not what is being made or replaced.

    Args:
        root: folder of all artifacts.
        pattern: of their names.
    """
    files = sorted(root.glob(f"{pattern}/{MANIFEST}"))
    return [file.parent for file in files if file.parent.suffix not in (".partial", ".old")]


def folder_of(given: str, root: Path, key: str) -> Path:
    """Return the folder that a path, or a name under a root, refers to. An artifact is tidied first.

    Raises:
        InputError: If there is none.
    """
    for folder in (Path(os.path.expanduser(given)), root / given):
        if folder.is_dir():
            tidy(folder.resolve())
            return folder.resolve()
    raise InputError(f"{key}={given}: no such folder, nor one of that name in {root}")


@contextmanager
def making(
    artifact: Artifact, *, resume: bool = False, usable: Callable[[Path], bool] = lambda _: True
) -> Iterator[Path | None]:
    """Make an artifact: yield the folder to write into, or None if the artifact is complete.

    If two processes make the same artifact, one makes it and the other waits. The folder is renamed at the end. An
    exception leaves the incomplete folder under its `.partial` name.

    Args:
        artifact: What is made.
        resume: Keep what an earlier, unfinished attempt has left.
        usable: Whether the artifact that is there can be used. If not, it is made again and replaced.

    Raises:
        InputError: If the manifest of a complete artifact is damaged, or a symbolic link has the name of the folder.
    """
    if artifact.is_complete and usable(artifact.folder):
        artifact.check()
        yield None
        return
    artifact.root.mkdir(parents=True, exist_ok=True)
    partial = artifact.partial
    with _locked(artifact):
        if artifact.is_complete and usable(artifact.folder):
            yield None
            return
        if partial.is_symlink():
            raise InputError(f"{partial}: a symbolic link, expected a folder of this program; remove the link")
        if _is_sealed(artifact):  # a killed process had only the renaming left to do
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
        content = {
            "title": artifact.title,
            "fingerprint": artifact.fingerprint,
            "completed": datetime.now(UTC).isoformat(timespec="seconds"),
            "fields": artifact.fields,
        }
        seal(partial, content)
        _rename(artifact)
        _remember(_key(artifact.folder, ""))


def _rename(artifact: Artifact) -> None:
    """Give a sealed folder its name, in place of an older artifact of that name."""
    old = artifact.folder.with_name(artifact.folder.name + ".old")
    if artifact.folder.exists():
        remove(old)
        artifact.folder.rename(old)
    artifact.partial.rename(artifact.folder)
    _sync(artifact.root)
    remove(old)


def _is_sealed(artifact: Artifact) -> bool:
    """Whether an unfinished folder has its manifest, so that only the renaming is missing. Remove a damaged one."""
    if not (artifact.partial / MANIFEST).exists():
        return False
    with suppress(InputError):
        content = read_manifest(artifact.partial)
        if content.get("fingerprint") == artifact.fingerprint and "files" in content:
            return True
    (artifact.partial / MANIFEST).unlink()
    return False


@contextmanager
def _locked(artifact: Artifact) -> Iterator[None]:
    lock = _lock_of(artifact.folder)
    if lock.parent.is_symlink():
        raise InputError(f"{lock.parent}: a symbolic link, expected a folder of this program; remove the link")
    lock.parent.mkdir(exist_ok=True)
    with open_lock(lock) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is making {artifact.folder.name}: waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _lock_of(folder: Path) -> Path:
    return folder.parent / ".locks" / f"{folder.name}.lock"


def open_lock(path: Path) -> IO[Any]:
    """Open a lock file, which is made if it is not there. A symbolic link is never followed.

    Raises:
        InputError: If the path is a symbolic link.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{path}: a symbolic link, expected a file of this program; remove the link") from None
        raise
    return os.fdopen(handle, "r+")


# ---- tidying


def tidy(folder: Path) -> None:
    """Finish what a killed command has left undone in a complete artifact.

    Removed are training states, dropped checkpoints, the artifact that this one has replaced, and temporary files of
    killed writes. Files that a living process is writing stay: it holds a lock on them. A folder that cannot be
    written, has a damaged manifest, or is of another program is left as it is.
    """
    old = folder.with_name(f"{folder.name}.old")
    undone = (folder / STATES, folder / DROPPED, old)
    if not (folder / MANIFEST).is_file():
        return
    with suppress(OSError, InputError):
        if "fingerprint" not in read_manifest(folder):
            return
        _remove_leftovers(folder)
        drops = list(folder.glob(f"{NOTE}*"))
        if not drops and not any(path.exists() or path.is_symlink() for path in undone):
            return
        if not _lock_of(folder).parent.is_dir():
            return
        with open_lock(_lock_of(folder)) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: another process makes it again
            for path in undone:
                remove(path)
            for drop in drops:
                if (folder.with_name(drop.name.removeprefix(NOTE)) / MANIFEST).is_file():
                    drop_checkpoints(folder)


def note_drop(folder: Path, name: str) -> None:
    """Note in an NTP run that its checkpoints are dropped when another artifact is complete, by whichever command."""
    (folder / f"{NOTE}{name}").touch()


def forget_drops(folder: Path) -> None:
    """Remove such notes: the checkpoints are kept."""
    with suppress(OSError):
        for note in folder.glob(f"{NOTE}*"):
            note.unlink(missing_ok=True)


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of an NTP run except the last, which is the tuned model: all of them or none."""
    dropped = folder / DROPPED
    if (folder / CHECKPOINTS).is_dir():
        remove(dropped)
        (folder / CHECKPOINTS).rename(dropped)
    remove(dropped)
    forget_drops(folder)


def remove(path: Path) -> None:
    """Remove a folder, a file, or a symbolic link (never what it points to), if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of killed writes. Files that a living process is writing are locked."""
    for path in [*folder.rglob("*")]:
        if path.relative_to(folder).parts[0] in ("wandb", STATES):
            continue
        if path.name.endswith(".partial") and path.is_dir():
            remove(path)
        elif TEMPORARY.fullmatch(path.name) and not path.is_dir() and _is_abandoned(path):
            path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    """Whether no living process holds the lock of a temporary file."""
    if path.is_symlink():
        return True
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# ---- checksums


def checksum(path: Path) -> str:
    """Return the checksum of a file's bytes (XXH3, 128 bits, hexadecimal)."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def entry_of(path: Path) -> dict[str, Any]:
    """Return the size and the checksum of a file, as a manifest lists them."""
    return {"bytes": path.stat().st_size, CHECKSUM: checksum(path)}


def differs(path: Path, entry: Any) -> str:
    """Return how a file differs from its entry in a manifest; an empty text if it does not."""
    try:
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"has {size} bytes, expected {entry['bytes']}"
        return "" if checksum(path) == entry[CHECKSUM] else "is damaged: its content does not match its checksum"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (TypeError, KeyError):
        return "has no checksum"


def seal(folder: Path, content: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of a folder: its content, and the size and checksum of every file.

    Args:
        folder: Folder of an artifact.
        content: Title, fingerprint and fields; None takes them from the manifest that is there.
    """
    if content is None:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in ("files", "checksum")}
    files = {
        name: entry_of(path)
        for path in sorted(folder.rglob("*"))
        if (name := path.relative_to(folder).as_posix()) != MANIFEST and _is_sealable(path, name)
    }
    write_json(folder / MANIFEST, sealed({**kept, "files": files}))
    _sync(folder)


def _is_sealable(path: Path, name: str) -> bool:
    return path.is_file() and not path.is_symlink() and name.split("/")[0] not in UNSEALED


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON content with a checksum of itself."""
    return {**content, "checksum": _checksum_of(content)}


def is_intact(content: Any) -> bool:
    """Whether JSON content matches the checksum that `sealed` has put into it."""
    if not isinstance(content, dict):
        return False
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return content.get("checksum") == _checksum_of(rest)


def _checksum_of(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seal_part(folder: Path) -> None:
    """Note the checksums of a subfolder of an unfinished artifact, such as a checkpoint, beside the subfolder."""
    files = {path.relative_to(folder).as_posix(): entry_of(path) for path in folder.rglob("*") if path.is_file()}
    write_json(_sums_of(folder), sealed({"files": files}))


def unseal_part(folder: Path) -> None:
    """Remove the checksums of a subfolder that is about to be written again."""
    _sums_of(folder).unlink(missing_ok=True)


def _sums_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.sums.json")


def check_sums(partial: Path, *, keep: bool = False) -> None:
    """Compare what earlier processes have finished in an unfinished artifact with the noted checksums.

    Args:
        partial: Folder of the unfinished artifact.
        keep: Keep the notes; else they are removed, since the manifest takes their place.

    Raises:
        InputError: If a file differs.
    """
    for note in sorted(partial.rglob(".*.sums.json")):
        found = SUMS.fullmatch(note.name)
        if found is None:
            continue
        content = _parse(note)
        if not is_intact(content):
            raise damaged(note, "is damaged: its content does not match its checksum")
        for name, entry in content["files"].items():
            file = note.with_name(found.group(1)) / name
            if why := differs(file, entry):
                raise damaged(file, why)
    if not keep:
        for note in sorted(partial.rglob(".*.sums.json")):
            note.unlink()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an artifact, without its own checksum.

    The manifest of an artifact that was made before checksums were kept has no `files`.

    Raises:
        InputError: If the manifest is damaged.
    """
    file = folder / MANIFEST
    content = _parse(file)
    if not isinstance(content, dict):
        raise damaged(file, "is damaged: expected a JSON object")
    if ("files" in content or "checksum" in content) and not is_intact(content):
        raise damaged(file, "is damaged: its content does not match its checksum")
    content.pop("checksum", None)
    return content


def verify(folder: Path, part: str = "") -> None:
    """Compare the files of an artifact, or of one of its subfolders, with the checksums in its manifest.

    This is done once per run: a process takes what its parent has verified as verified.

    Args:
        folder: Folder of a complete artifact.
        part: Name of a subfolder; empty for all files.

    Raises:
        InputError: If a file is missing, damaged, or not of the artifact.
    """
    key = _key(folder, part)
    if _is_verified(key):
        return
    files = read_manifest(folder).get("files")
    if files is None:
        print(f"            {folder.name}: made before checksums were kept, its files are not verified", flush=True)
    else:
        prefix = f"{part}/" if part else ""
        for name, entry in files.items():
            if name.startswith(prefix) and (why := differs(folder / name, entry)):
                raise damaged(folder / name, why)
        for path in sorted((folder / part).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if name not in files and name != MANIFEST and path.suffix in READ_SUFFIXES and _is_sealable(path, name):
                if any(word.startswith(".") for word in name.split("/")):
                    continue
                raise InputError(f"{path}: not a file of the artifact {folder.name}; remove it")
    _remember(key)


def verify_inside(path: Path) -> None:
    """Verify a file or a folder of files, if it lies in an artifact of this program: a checkpoint, a model's folder.

    Raises:
        InputError: As `verify`.
    """
    path = path.resolve()
    folder = path if _is_artifact(path) else _artifact_above(path)
    if folder is None:
        return
    if path.is_dir():
        verify(folder, "" if path == folder else path.relative_to(folder).as_posix())
    else:
        _verify_file(path)


def forget_verified() -> None:
    """Begin a run: files that an earlier run of this process has verified are verified again."""
    _verified.clear()
    os.environ.pop(VERIFIED, None)


_verified: set[str] = set()


def _key(folder: Path, part: str) -> str:
    return fingerprint({"folder": os.fsencode(folder.resolve()).hex(), "part": part})


def _remember(key: str) -> None:
    _verified.add(key)
    os.environ[VERIFIED] = f"{os.getpid()}:{','.join(sorted(_verified))}"


def _is_verified(key: str) -> bool:
    parent, _, keys = os.environ.get(VERIFIED, "").partition(":")
    return key in _verified or (parent == str(os.getppid()) and key in keys.split(","))


def _artifact_above(path: Path) -> Path | None:
    """Return the artifact that a file lies in, at most three folders deep, or None."""
    return next((folder for folder in list(path.parents)[:3] if _is_artifact(folder)), None)


def _is_artifact(folder: Path) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    if re.search(r"-[0-9a-f]{8}$", folder.name):
        return True
    with suppress(OSError, ValueError):
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return isinstance(content, dict) and "fingerprint" in content
    return False


def _verify_file(path: Path) -> None:
    """Compare a file with its checksum, if it lies in an artifact whose manifest lists it."""
    folder = _artifact_above(path)
    if folder is not None and path != folder / MANIFEST:
        entry = (read_manifest(folder).get("files") or {}).get(path.relative_to(folder).as_posix())
        if entry is not None and (why := differs(path, entry)):
            raise damaged(path, why)


def damaged(file: Path, why: str) -> InputError:
    """Return the one line for a damaged file: what is wrong, and the command that makes the file again."""
    return InputError(f"{file}: {why}{_remedy(file)}")


def _remedy(file: Path) -> str:
    partial = next((folder for folder in file.parents if folder.name.endswith(".partial")), None)
    if partial is not None:
        return f"; delete {partial} and run the same command again"
    folder = file.parent if file.name == MANIFEST else _artifact_above(file)
    if folder is None or folder.parent.name == "sweeps" or not re.search(r"-[0-9a-f]{8}$", folder.name):
        return ""
    command = _command_of(folder)
    return f"; delete {folder} and run {f'`{command}`' if command else 'the train.py command that made it'} again"


def _command_of(folder: Path) -> str | None:
    """Return the command that makes an artifact again where it is, if its `run.json` can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        words = json.loads((folder / "run.json").read_text(encoding="utf-8"))["command"]
        roots = [word.removeprefix("root=") for word in words if word.startswith("root=")]
        if roots and Path(roots[-1]).resolve() != folder.parent.resolve():  # moved or copied since
            words = [word for word in words if not word.startswith("root=")] + [f"root={folder.parent}"]
        return shell_command(["python", *words])
    return None


# ---- input files


def content_hash(path: Path, cache: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """Return the SHA-256 of a file's bytes, or of a folder's files of the given patterns with their names.

    A remembered hash is used only if size, modification time, change time and inode of the file (of the target of a
    symbolic link) are those of the file that was hashed. The hash of a file that had changed less than two seconds
    earlier is not remembered. A cache that is damaged is ignored; one that cannot be written is not written.

    Args:
        path: File or folder.
        cache: JSON file that remembers hashes.
        patterns: Which files of a folder count.

    Raises:
        InputError: If the file changes while it is read.
    """
    if path.is_dir():
        files = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
        parts = [f"{file.name}:{content_hash(file, cache)}" for file in files]
        return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
    key = str(path.resolve())
    known = _remembered_hashes(cache)
    before = _identity(path)
    if (entry := known.get(key)) is not None and entry[:-1] == before:
        return str(entry[-1])
    begin = time.time_ns()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if _identity(path) != before:
        raise InputError(f"{path}: changed while it was read; run the command again when the file is complete")
    if max(before[1:3]) < begin - RACY_NS:
        with suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache, sealed({"files": {**_remembered_hashes(cache), key: [*before, found]}}))
    return found


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _remembered_hashes(cache: Path) -> dict[str, list[Any]]:
    with suppress(OSError, ValueError):
        content = json.loads(cache.read_text(encoding="utf-8"))
        if is_intact(content) and isinstance(content.get("files"), dict):
            found: dict[str, list[Any]] = content["files"]
            return found
    return {}


# ---- reading and writing


def sync_folder(folder: Path) -> None:
    """Flush a folder and everything in it to the disk."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _aside(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield a new temporary file that replaces a file at the end, or is removed after an exception.

    The temporary file is locked while it is written, so that other processes can tell it from one that a killed
    process has left. A symbolic link of its name is not followed.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield aside
        _sync(aside)
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def write_json(path: Path, content: Any, mode: int | None = None) -> None:
    """Write a JSON file as a whole or not at all, with the permissions `mode` if they are given."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"), mode)  # half a character is escaped as JSON does it


def write_bytes(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file as a whole or not at all, also if another process writes the same file."""
    with _aside(path, 0o666 if mode is None else mode) as aside:
        aside.write_bytes(content)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. A file of an artifact is compared with its checksum.

    Raises:
        InputError: If the file is damaged or not JSON.
        OSError: If the file cannot be read.
    """
    if path.name == MANIFEST:
        return read_manifest(path.parent)
    _verify_file(path)
    return _parse(path)


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        what = "is empty" if path.stat().st_size == 0 else f"is not JSON ({error})"
        raise damaged(path, f"{what}, expected a JSON file") from None


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of equal length as a parquet file, as a whole or not at all."""
    write_parts(path, [columns])


def write_parts(path: Path, parts: Iterable[Mapping[str, Any]]) -> None:
    """Write parts of equal columns one after the other as a parquet file, as a whole or not at all."""
    import pyarrow
    from pyarrow import parquet

    with _aside(path) as aside:
        writer = None
        for part in parts:
            table = pyarrow.table(dict(part))
            writer = writer or parquet.ParquetWriter(aside, table.schema, write_page_checksum=True)
            writer.write_table(table)
        assert writer is not None
        writer.close()


def read_table(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a parquet file. A file of an artifact is compared with its checksum.

    Raises:
        InputError: If the file is missing, damaged or not a parquet file.
    """
    return read_parquet(path).to_pydict()


def read_parquet(path: Path, columns: list[str] | None = None) -> Any:
    """Return the Arrow table of a parquet file, as `read_table`."""
    import pyarrow
    from pyarrow import parquet

    _verify_file(path)
    try:
        return parquet.read_table(path, columns=columns, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise damaged(path, f"cannot be read, expected a parquet file ({cause})") from None


def read_confidence(path: Path) -> Any:
    """Return the Arrow table of columns `example_id, checkpoint, num_tokens, nll` (nats) of a confidence file.

    Raises:
        InputError: If the file is missing, not a parquet file, or lacks a column.
    """
    if not path.is_file():
        raise InputError(f"confidence.path={path}: no such file")
    table = read_parquet(path)
    lacking = [name for name in CONFIDENCE_COLUMNS if name not in table.column_names]
    if lacking:
        raise InputError(f"{path}: no column {', '.join(lacking)}; found {', '.join(table.column_names)}")
    return table
