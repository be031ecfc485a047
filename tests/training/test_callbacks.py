"""Rates of training, against tokens that are counted by hand, and what the progress bar shows."""

import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from modules import EPOCHS, STEPS_PER_EPOCH, TOTAL, fit, small_data, small_module
from sftmix.training import callbacks as callbacks_module
from sftmix.training.callbacks import StepProgressBar, Throughput


def test_tokens_are_counted_with_and_without_padding(tmp_path):
    data = small_data()
    module = small_module()
    fit(module, data, tmp_path, Throughput(peak_flops=1e9), logger=CSVLogger(tmp_path, name="logs", version=""))
    with (tmp_path / "logs/metrics.csv").open() as handle:
        rows = [row for row in csv.DictReader(handle) if row["perf/tokens_per_sec"]]
    assert len(rows) == TOTAL
    steps = [data.steps()[epoch, k] for epoch in range(EPOCHS) for k in range(STEPS_PER_EPOCH)]
    for row, batch in zip(rows, steps, strict=True):
        padded = sum(i.input_ids.numel() for micro in batch.micro_batches for i in micro.inputs)
        share = float(row["perf/padded_tokens_per_sec"]) / float(row["perf/tokens_per_sec"])
        assert share == pytest.approx(padded / batch.num_input_tokens)
        flops = 6 * sum(p.numel() for p in module.lm.parameters()) * float(row["perf/tokens_per_sec"])
        assert float(row["perf/mfu"]) == pytest.approx(flops / 1e9)
    assert "perf/peak_memory_gib" not in rows[0], "memory is that of a GPU"


def test_the_bar_shows_loss_and_speed(tmp_path, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, *_):
            pass

        def set_postfix(self, values, refresh):
            shown.append(values)

        def __getattr__(self, name):
            return lambda *_, **__: None

    monkeypatch.setattr(callbacks_module, "progress_bar", Bar)
    fit(small_module(), small_data(), tmp_path, Throughput(), StepProgressBar("target"), log_every_n_steps=1)
    assert len(shown) == TOTAL
    assert {"loss", "tokens/s"} <= shown[0].keys()
    assert torch.tensor(float(shown[0]["loss"])).isfinite()
