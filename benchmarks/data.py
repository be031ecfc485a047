"""Seconds and memory to read and tokenize a data set of growing size, and to draw steps from it.

The benchmark also measures the checksums of artifacts and the hashes of inputs: as a share of preparing data, and as a
share of whole runs. The data sets are one, two and four copies of Alpaca with different example ids. Each size is
measured in a new process. Memory is anonymous memory: files that a process maps do not count. The last line is JSON.

    python benchmarks/data.py
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from batches import arguments
from side_by_side import table

from sftmix.artifacts import manifest
from sftmix.artifacts.hashes import checksum
from sftmix.config.load import from_hydra
from sftmix.config.schema import Config
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.data.sources import read_file
from sftmix.models.tokenizer import load_tokenizer
from sftmix.stages.context import RunContext
from sftmix.stages.pipeline import run_pipeline

CONF = Path(__file__).parents[1] / "conf"
SIZES = (1, 2, 4)
Results = Any  # a queue of what was measured
Work = Callable[[argparse.Namespace, Path, Results], None]


def main() -> None:
    """Measure all sizes and print how time and memory grow."""
    parser = arguments(__doc__)
    parser.add_argument("--limit", type=int, default=None, help="rows of the smallest size; default: all")
    parser.add_argument("--workers", type=int, default=None, help="processes that tokenize; default: one for each core")
    parser.add_argument(
        "--hidden-sizes",
        type=int,
        nargs="+",
        default=[128, 512],
        help="hidden sizes of the embedded model, one run each",
    )
    args = parser.parse_args()
    if not args.data.is_file():
        raise SystemExit(f"{args.data}: no such file, give the file of Alpaca by --data")
    lines = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            write_copies(args, size, Path(folder))
            lines.append(in_new_process(prepare, args, Path(folder)) | in_new_process(map_and_draw, args, Path(folder)))
            print(f"{size}x done", flush=True)
    rows = []
    for line, before in zip(lines, [None, *lines[:-1]], strict=True):
        cells = [f"{line['examples']:,}"]
        for key in ("read_seconds", "tokenize_seconds", "map_seconds"):
            cells.append(f"{line[key]:.1f}" + (f" (x {line[key] / before[key]:.2f})" if before else ""))
        cells.append(f"{line['examples'] / (line['read_seconds'] + line['tokenize_seconds']):,.0f}")
        for key in ("peak_mib", "worker_mib", "mapped_mib"):
            cells.append(f"{line[key]:.0f}" + (f" (x {line[key] / before[key]:.2f})" if before and before[key] else ""))
        rows.append(tuple(cells))
    names = ("examples", "read s", "tokenize s", "map, draw s", "examples/s")
    table((*names, "peak MiB", "of a worker", "mapping: peak MiB"), rows)
    more = lines[-1]["examples"] - lines[0]["examples"]
    held = {key: round((lines[-1][key] - lines[0][key]) * 2**20 / more) for key in ("peak_mib", "mapped_mib")}
    for line in lines:
        share = line["hash_seconds"] / (line["read_seconds"] + line["tokenize_seconds"])
        print(
            f"checksums of {line['examples']:,} examples: {line['hash_seconds']:.3f} s, {share:.2%} of preparing them"
        )
    runs = [in_new_process(run_embedded, args, Path(str(size))) for size in args.hidden_sizes]
    for run in runs:
        share = run["hash_seconds"] / run["run_seconds"]
        print(
            f"checksums and hashes of a run, {run['weights_mib']:.1f} MiB of weights: {run['hash_seconds']:.3f} s "
            f"for {run['hashed_mib']:.0f} MiB, {share:.2%} of {run['run_seconds']:.1f} s"
        )
    print(f"\none more example takes {held['peak_mib']} bytes while preparing and {held['mapped_mib']} mapped\n")
    print(json.dumps({"benchmark": "data", "lines": lines, "runs": runs, "bytes_per_example": held}))


def in_new_process(work: Work, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Return what a function measures in a new process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=work, args=(args, folder, queue))
    process.start()
    metrics = queue.get()
    process.join()
    return metrics


def write_copies(args: argparse.Namespace, size: int, folder: Path) -> None:
    """Write copies of the rows, each with other example ids."""
    with (folder / "rows.jsonl").open("w") as file:
        for copy in range(size):
            for row in read_file(args.data):
                if args.limit is None or row.number <= args.limit:
                    fields = {**row.fields, "instruction": f"{row.fields['instruction']}{' ' * copy}"}
                    file.write(json.dumps(fields) + "\n")


def anonymous_mib(process: int | str = "self") -> float:
    """Return the anonymous memory of a process; 0 if the process has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0.0)


class Peak:
    """The largest memory of this process and of its workers while a block runs, measured every 20 ms."""

    def __init__(self) -> None:
        self.own = self.worker = 0.0

    def __enter__(self) -> "Peak":
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.own = max(self.own, anonymous_mib())
            for task in Path("/proc/self/task").glob("*/children"):
                self.worker = max([self.worker, *map(anonymous_mib, task.read_text().split())])

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


def config_of(args: argparse.Namespace, folder: Path) -> Config:
    """Return a config of the copies with Alpaca's prompt. The tokenizer is given separately."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["data=own", "data.template=alpaca", "data.max_seq_len=512", f"data.path={folder / 'rows.jsonl'}"]
        workers = f"data.num_workers={args.workers or 'null'}"
        return from_hydra(
            hydra.compose("config", [*overrides, workers, "trainer.progress_bar=false", f"root={folder / 'runs'}"])
        )


def prepare(args: argparse.Namespace, folder: Path, queue: Results) -> None:
    """Measure reading and tokenizing."""
    config, tokenizer = config_of(args, folder), load_tokenizer(str(args.tokenizer), None, None)
    context = RunContext(config)
    with Peak() as peak:
        begin = time.perf_counter()
        _ = context.data.examples
        read = time.perf_counter() - begin
        begin = time.perf_counter()
        context.data.encode(tokenizer)
        tokenized = time.perf_counter() - begin
    begin = time.perf_counter()
    for file in (folder / "runs" / "data").rglob("*"):
        if file.is_file():
            checksum(file)
    hashed = time.perf_counter() - begin
    metrics = {"read_seconds": read, "tokenize_seconds": tokenized, "hash_seconds": hashed}
    queue.put({**metrics, "peak_mib": peak.own, "worker_mib": peak.worker})


def run_embedded(args: argparse.Namespace, size: Path, queue: Results) -> None:
    """Run all stages on the embedded data, and measure the time of all checksums (artifacts) and SHA-256 (inputs)."""
    spent = {"seconds": 0.0, "bytes": 0}

    def timed(function: Callable[..., Any], size_of: Callable[..., int]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            begin = time.perf_counter()
            found = function(*given)
            spent["seconds"] += time.perf_counter() - begin
            spent["bytes"] += size_of(*given)
            return found

        return call

    manifest.checksum = timed(manifest.checksum, lambda path: path.stat().st_size)
    hashlib.file_digest = timed(hashlib.file_digest, lambda file, _: os.fstat(file.fileno()).st_size)
    with tempfile.TemporaryDirectory() as folder, hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        settings = [f"model.init.hidden_size={size}", "trainer=cpu", "trainer.progress_bar=false", f"root={folder}"]
        begin = time.perf_counter()
        plan = run_pipeline(from_hydra(hydra.compose("config", settings)))
        seconds = time.perf_counter() - begin
        weights = (plan.target.folder / "model" / "model.safetensors").stat().st_size
    metrics = {"run_seconds": seconds, "hash_seconds": spent["seconds"]}
    queue.put({**metrics, "hashed_mib": spent["bytes"] / 2**20, "weights_mib": weights / 2**20})


def map_and_draw(args: argparse.Namespace, folder: Path, queue: Results) -> None:
    """Measure what a later run does: map the prepared data, draw an epoch, read a hundred steps."""
    config, tokenizer = config_of(args, folder), load_tokenizer(str(args.tokenizer), None, None)
    with Peak() as peak:
        begin = time.perf_counter()
        encoded = RunContext(config).data.encode(tokenizer)
        subsets = [k % 2 == 0 for k in range(len(encoded.train))]
        sampler = StepSampler(len(encoded.train), subsets, SamplerSettings(global_batch_size=32, seed=0))
        for step in sampler.epoch(0)[:100]:
            _ = [encoded.train[i] for i in step.examples]
        seconds = time.perf_counter() - begin
    count = len(encoded.train) + len(encoded.val)
    queue.put({"examples": count, "map_seconds": seconds, "mapped_mib": peak.own})


if __name__ == "__main__":
    main()
