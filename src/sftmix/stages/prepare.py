"""Prepare a data set once for all runs that share it: its examples, and their token ids under a tokenizer.

Both are artifacts of Arrow files under `root/data`. They are written shard by shard and mapped into memory afterwards.
"""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import active_children, get_context, resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any

from sftmix.artifacts.artifact import Artifact, making
from sftmix.artifacts.files import write_json
from sftmix.artifacts.hashes import is_intact, sealed
from sftmix.artifacts.manifest import differs, entry_of, read_json
from sftmix.config.data import Data, Mixture, Replacement, Source
from sftmix.config.schema import to_dict
from sftmix.data.arrow_rows import read_hub
from sftmix.data.census import Census, first_few
from sftmix.data.demo import demo_rows
from sftmix.data.encoding import ENCODING, Encoder
from sftmix.data.example import Example
from sftmix.data.files import local_copy, other_files, other_splits, stray_files
from sftmix.data.reader import ExampleReader
from sftmix.data.response_replacement import ReplacementResponses
from sftmix.data.row_errors import list_names
from sftmix.data.rows import Row
from sftmix.data.schemas import MEANING
from sftmix.data.shards import EXAMPLES, TOKENS, Examples, example_columns, map_shard, token_columns, write_shard
from sftmix.data.sources import read_path
from sftmix.distributed.device import num_cores
from sftmix.distributed.stopping import blocked, die_with
from sftmix.errors import InputError
from sftmix.terminal import counted
from sftmix.training.progress import progress_bar

SHARD_EXAMPLES, SHARD_CHARACTERS = 4096, 2**26  # a shard is full when it reaches one of them
FEWEST_FOR_WORKERS = 20_000  # examples; a worker takes some seconds to start
MOST_WORKERS = 16  # each needs about 350 MB for its imports and tokenizer
# Signals that a terminal or SLURM sends to all processes. SIGTERM is left out: a broken pool ends its workers by it.
STOP_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SIGNAL_SECONDS = 0.5  # for a signal that ended a worker to reach this process too
SHORT_SECONDS = 2.0  # a progress bar is shown after this time
READING, CENSUS = "reading.json", "census.json"


def make_examples(artifact: Artifact, data: Data, show_progress: bool) -> None:
    """Read the source and write its examples, and `reading.json`: what happened to its rows."""
    with making(artifact) as folder:
        if folder is None:
            return
        census, replacement = Census(), None
        if (source := data.replacement) is not None:
            responses = _rows_of(source, source.path, "data.replacement.path", data.max_row_bytes)
            replacement = ReplacementResponses(responses, source.fraction)
        columns = {name: column for name, column in to_dict(data.columns).items() if column is not None}
        reader = ExampleReader(census, schema=data.schema, columns=columns, groups=data.groups, change=replacement)
        taken: dict[str, int] = {}

        def rows() -> Iterator[Row]:
            with progress_bar(None, "reading", "row", hide=not show_progress, delay=SHORT_SECONDS) as bar:
                for row in source_rows(data):
                    taken[row.source] = taken.get(row.source, 0) + 1
                    bar.update()
                    yield row

        number, size, shard = 0, 0, list[Example]()
        for examples in reader.read(rows(), data.limit):
            shard += examples
            size += sum(len(e.response) + sum(len(m.content) for m in e.messages) for e in examples)
            if len(shard) >= SHARD_EXAMPLES or size >= SHARD_CHARACTERS:
                write_shard(_shard(folder, number), EXAMPLES, example_columns(shard))
                number, shard, size = number + 1, [], 0
        write_shard(_shard(folder, number), EXAMPLES, example_columns(shard))
        reader.check_settings()
        path = None if data.path is None else Path(data.path)
        write_json(
            folder / READING,
            {
                "census": census.as_dict(),
                "schemas": dict(reader.num_rows),
                "rows": taken,
                "unread": sorted(reader.unread),
                "other_files": [] if path is None else other_files(path),
                "other_splits": [] if path is None or data.mixture is not None else other_splits(path, data.split),
                "stray_files": [] if path is None or data.mixture is None else stray_files(path, data.mixture.sources),
                "joined": None if replacement is None else replacement.num_joined,
                "replacement_unread": None if replacement is None else replacement.num_unread,
                "replacement_later": None if replacement is None else replacement.num_later,
            },
        )


def source_rows(data: Data) -> Iterator[Row]:
    """Yield the rows of a data set."""
    limit = data.max_row_bytes
    if data.mixture is not None:
        for name, source in data.mixture.taken.items():
            path = None if data.path is None else local_copy(Path(data.path), name)
            rows = _rows_of(source, path, f"data.mixture.sources.{name}.path", limit)
            for row in islice(rows, source.cap):
                yield row._replace(source=name if path is None or path.is_file() else f"{name}/{row.source}")
    elif data.demo is not None:
        for number, fields in enumerate(demo_rows(**to_dict(data.demo)), start=1):
            yield Row(f"demo, row {number}", number, fields, "demo")
    else:
        yield from _rows_of(data, data.path, "data.path", limit)


def _rows_of(source: Data | Replacement | Source, path: str | Path | None, key: str, limit: int) -> Iterator[Row]:
    if path is not None:
        return read_path(Path(path), source.split, limit, key)
    return read_hub(str(source.hub_id), source.revision, str(source.split), limit)


def describe_reading(data: Data, reading: Mapping[str, Any]) -> str:
    """Return what reading has found, in lines: the schemas of the rows, what was not read, and a mixture's sources."""
    total = counted(sum(reading["rows"].values()), "row")
    lines = [f"  {count:>9,} of {total}: {MEANING[schema]}" for schema, count in sorted(reading["schemas"].items())]
    if reading["unread"]:
        lines.append(f"            columns that are not read: {list_names(reading['unread'])}")
    if others := reading["other_files"]:
        lines.append(f"            {counted(len(others), 'file')} of kinds that are not read: {first_few(others)}")
    if others := reading["other_splits"]:
        files = counted(len(others), "data file")
        lines.append(f"            {files} of other splits than {data.split}, not read: {first_few(others)}")
    if strays := reading["stray_files"]:
        lines.append(f"            not read, of none of the sources: {first_few(strays)}")
    if reading["joined"] is not None:
        lines.append(f"  {reading['joined']:>9,} rows with a replaced response (group high), the others are unchanged")
        if reading["replacement_unread"]:
            lines.append(f"  {reading['replacement_unread']:>9,} rows of data.replacement hold no readable response")
        if reading["replacement_later"]:
            count = reading["replacement_later"]
            lines.append(f"  {count:>9,} rows of data.replacement answer a prompt again: the first counts")
    if data.mixture is not None:
        lines += _composition(data.mixture, reading["rows"])
    elif len(reading["rows"]) > 1:
        lines.append(f"  from {len(reading['rows'])} files: " + ", ".join(reading["rows"]))
    return "\n".join(lines)


def _composition(mixture: Mixture, rows: Mapping[str, int]) -> list[str]:
    lines = [f"  {'source':<28}{'rows':>10}{'published':>11}"]
    for name, source in mixture.sources.items():
        here = sum(count for key, count in rows.items() if key == name or key.startswith(f"{name}/"))
        taken = f"{here:,}" if name in mixture.taken else "left out"
        published = "" if source.published is None else f"{source.published:,}"
        cap = "" if source.cap is None else f"  first {source.cap:,}"
        holds = "" if source.holds is None else f"  holds questions of {source.holds}"
        lines.append(f"  {name:<28}{taken:>10}{published:>11}{cap}{holds}")
    total = "" if mixture.total is None else f"; the paper names {mixture.total:,} and not what they are"
    return [*lines, f"  {'together':<28}{sum(rows.values()):>10,}{total}"]


def tokens_artifact(examples: Artifact, encoder: Encoder, title: str) -> Artifact:
    """Return the artifact of the token ids of a data set under a tokenizer."""
    fields = {
        "kind": "tokens",
        "encoding": ENCODING,
        "examples": examples.fingerprint,
        **tokenizer_hashes(encoder.tokenizer),
        "max_seq_len": encoder.max_seq_len,
        "overlong": encoder.overlong,
    }
    return Artifact(examples.root, f"tokens-{title}", fields)


def tokenizer_hashes(tokenizer: Any) -> dict[str, str]:
    """Return the SHA-256 of a tokenizer, and of its chat template."""
    backend = "\n".join((tokenizer.backend_tokenizer.to_str(), str(tokenizer.special_tokens_map)))
    return {
        "tokenizer": hashlib.sha256(backend.encode()).hexdigest(),
        "template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
    }


def make_tokens(
    artifact: Artifact, examples: Path, encoder: Encoder, *, num_workers: int | None, show_progress: bool
) -> None:
    """Encode every example and write the token ids, and `census.json`: what happened to each example.

    A shard of examples becomes a shard of tokens, so that several processes can share the work. Shards that an
    interrupted call has finished are kept.

    Args:
        examples: Folder of an examples artifact.
        num_workers: Number of processes. None: one for each core if there are many examples, otherwise only this one.
    """
    with making(artifact, resume=True) as folder:
        if folder is None:
            return
        tasks, first = [], 0
        for number, file in enumerate(sorted(examples.glob("*.arrow"))):
            size = len(Examples(map_shard(file)))
            tasks.append((file, _shard(folder, number), first))
            first += size
        if num_workers is None:
            num_workers = min(num_cores(), MOST_WORKERS) if first >= FEWEST_FOR_WORKERS else 1
        census = Census()
        with progress_bar(first, "tokenizing", "example", hide=not show_progress, delay=SHORT_SECONDS) as bar:
            for seen, state in _encode_shards(encoder, tasks, min(num_workers, len(tasks))):
                census.add(state)
                bar.update(seen)
        write_json(folder / CENSUS, census.as_dict())


def _encode_shards(
    encoder: Encoder, tasks: list[tuple[Path, Path, int]], num_workers: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if num_workers <= 1:
        for task in tasks:
            yield _encode_shard(encoder, *task)
        return
    # The processes are spawned, since a fork would lack the threads of this process.
    earlier_children = active_children()
    with blocked(*STOP_SIGNALS):
        resource_tracker.ensure_running()  # now, since it unblocks SIGINT
    with ProcessPoolExecutor(num_workers, get_context("spawn"), _start_worker, (encoder, os.getpid())) as pool:
        try:
            with _without_main(), blocked(*STOP_SIGNALS):
                futures = [pool.submit(_encode_in_worker, task) for task in tasks]
            for future in futures:
                yield future.result()
        except BrokenProcessPool:
            time.sleep(SIGNAL_SECONDS)  # if a signal of SLURM ended the worker, it ends this process too
            raise InputError(
                f"data.num_workers={num_workers}: a process that tokenizes was killed (short of memory?); what is "
                f"finished is kept, go on with fewer"
            ) from None
        except BaseException:  # do not wait for the current shards: without their census they are encoded again
            for worker in active_children():
                if worker not in earlier_children:
                    worker.kill()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the caller's script from new processes. A worker would run a script without a `__main__` guard again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_worker_encoder: list[Encoder] = []  # the encoder of a worker process


def _start_worker(encoder: Encoder, parent: int) -> None:
    die_with(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is already one process for each core
    _worker_encoder.append(encoder)


def _encode_in_worker(task: tuple[Path, Path, int]) -> tuple[int, Mapping[str, Any]]:
    return _encode_shard(_worker_encoder[0], *task)


def _encode_shard(encoder: Encoder, source: Path, target: Path, first: int) -> tuple[int, Mapping[str, Any]]:
    """Encode one shard, unless an earlier call has finished it. Return the number of its examples and their census."""
    done, examples = target.with_suffix(".json"), Examples(map_shard(source))
    known: Any = None
    with suppress(OSError, InputError):  # a shard whose note is missing or damaged is encoded again
        known = read_json(done)
    if not is_intact(known) or differs(target, known.get("shard")):
        census, some = Census(), examples[:]
        fitted = encoder.fit(some, census)
        write_shard(target, TOKENS, token_columns(fitted, some, first))
        known = sealed({"census": census.as_dict(), "shard": entry_of(target)})
        write_json(done, known)
    return len(examples), known["census"]


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.arrow"
