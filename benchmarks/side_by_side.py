"""Times of variants that alternate in one process, their ratios with intervals, and the peak memory of each."""

import ctypes
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads must not use the time of working ones


class Timing(NamedTuple):
    """Seconds of one repetition."""

    wall: float  # Seconds on the clock
    cpu: float  # Seconds of all threads of the process


class Ratio(NamedTuple):
    """The median of paired ratios and its 95% interval by order statistics."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the ratio as a cell of a table."""
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def verdict(self, bound: float) -> str:
        """Return whether the ratio is at most a bound: met, missed, or inconclusive if the interval holds the bound."""
        return "met" if self.high <= bound else "missed" if self.low > bound else "inconclusive"

    def reaches(self, bound: float) -> str:
        """Return whether the ratio is at least a bound, likewise."""
        return "met" if self.low >= bound else "missed" if self.high < bound else "inconclusive"


def synchronize() -> None:
    """Wait for the GPU if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alternate(variants: Mapping[str, Callable[[int], object]], repetitions: int, title: str) -> dict[str, list[Timing]]:
    """Time each variant once per repetition, after one repetition to warm up. Every second one has the reverse order.

    Args:
        variants: Called with the number of the repetition, so that all variants use the same batch.
        repetitions: Repetitions that count.
        title: Title of the line of progress.
    """
    times: dict[str, list[Timing]] = {name: [] for name in variants}
    for repetition in range(-1, repetitions):
        names = list(variants) if repetition % 2 else list(variants)[::-1]
        for name in names:
            synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            variants[name](max(repetition, 0))
            synchronize()
            if repetition >= 0:
                times[name].append(Timing(time.perf_counter() - wall, time.process_time() - cpu))
        if sys.stderr.isatty():
            print(f"\r{title}: {repetition + 1}/{repetitions}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return times


def paired_ratio(over: Sequence[Timing], under: Sequence[Timing], of: str = "wall") -> Ratio:
    """Return the median ratio of the times of two variants in the same repetition."""
    ratios = sorted(getattr(a, of) / getattr(b, of) for a, b in zip(over, under, strict=True))
    reach = 0.98 * math.sqrt(len(ratios))
    low = max(0, math.floor(len(ratios) / 2 - reach))
    high = min(len(ratios) - 1, math.ceil(len(ratios) / 2 + reach) - 1)
    return Ratio(statistics.median(ratios), ratios[low], ratios[high])


def median_seconds(times: Sequence[Timing]) -> float:
    """Return the median seconds on the clock."""
    return statistics.median(t.wall for t in times)


def peak_bytes(work: Callable[[], object]) -> int:
    """Return how far some work raises the memory in use, of the process or of the GPU, in bytes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise freed memory would count as in use
    before = _memory_line("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    work()
    return _memory_line("VmHWM") - before


def _memory_line(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(name)).split()[1])


def in_new_processes(number: int, *arguments: str) -> float:
    """Run this benchmark several times with other arguments. Return the median of the bytes in their last lines."""
    command = [sys.executable, *sys.argv[:1], *arguments]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(number)]
    return statistics.median(float(json.loads(run.stdout.splitlines()[-1])["bytes"]) for run in runs)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, the first aligned to the left and the others to the right."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    for row in [header, *rows]:
        cells = [
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells))
    print(flush=True)
