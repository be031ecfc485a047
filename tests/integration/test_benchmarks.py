"""The benchmarks run to their last line on a small real model. Their results are not tested."""

import json
import subprocess
import sys

import pytest

from paths import ROOT

RUNS = {
    "mixup_cost": (["--repetitions", "2"], ["time_ratio", "memory_ratio"]),
    "losses": (["--repetitions", "1"], ["ratios"]),
    "throughput": (["--steps", "2", "--rounds", "1"], ["loops"]),
    "scoring": (["--repetitions", "2", "--examples", "32"], ["time_ratio"]),
    "layouts": (["--repetitions", "1"], ["layouts"]),
    "growth": (["--repetitions", "1"], ["growth"]),
    "dialogues": (["--repetitions", "2"], ["time_ratio", "token_ratio"]),
    "answering": (["--repetitions", "1", "--prompts", "4", "--max_new_tokens", "8"], ["batch_ratio", "draw_ratio"]),
    "intervals": (["--cases", "20", "--examples", "20"], ["least_coverage"]),
    "replies": (["--characters", "4096"], ["largest_ratio"]),
    "gpu_loss": (["--device", "cpu"], ["errors"]),
    "gpu_step": (
        ["--device", "cpu", "--hidden", "128", "--layers", "2", "--vocab", "512", "--tokens", "256", "--length", "64"],
        ["predicted_gib"],
    ),
    "data_map": (["--examples", "500"], ["megabytes", "seconds_to_write"]),
    "data": (["--limit", "2000", "--hidden-sizes", "32"], ["lines", "runs", "bytes_per_example"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs_to_its_last_line(shared, name):
    arguments, keys = RUNS[name]
    has_model = name not in ("data", "data_map", "intervals", "replies", "gpu_loss", "gpu_step")
    model = ["--model", str(shared / "models" / "stories260K")] if has_model else []
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *model, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics["benchmark"] == name
    assert set(keys) <= set(metrics)


def test_every_benchmark_is_run_by_a_test():
    scripts = {f.stem for f in (ROOT / "benchmarks").glob("*.py") if "__main__" in f.read_text()}
    assert scripts == set(RUNS)
