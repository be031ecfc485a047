"""Small run folders and sweeps made by hand: every metric in them is chosen, nothing is trained."""

from pathlib import Path

import pytest

from sftmix.artifacts.files import write_json
from sftmix.artifacts.tables import write_table

VAL = {"a": 10, "b": 20, "c": 30, "d": 40}  # response tokens of each held-out example
HALVES = {"a": "confident", "b": "confident", "c": "unconfident", "d": "unconfident"}
CONFIG = {
    "model": {"name": "tiny", "lr": 1e-3},
    "data": {"name": "demo", "epochs": 3, "val_fraction": 0.1, "limit": None, "demo": {"num_examples": 2000}},
    "optimizer": {"weight_decay": 0.1},
    "scheduler": {"warmup_ratio": 0.1},
    "recipe": {
        "name": "sftmix",
        "global_batch_size": 32,
        "mixup": {"mu": 0.2, "alpha": 0.5},
    },
}


class Maker:
    """Makes runs and sweeps under a root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self, name: str, per_token, *, val=VAL, halves=HALVES, seed=0, config=CONFIG, seconds=1.0, fields=None
    ) -> Path:
        """A finished run whose held-out examples have so many nats per token, all alike or example by example."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        each = per_token if isinstance(per_token, dict) else dict.fromkeys(val, per_token)
        rows = {"example_id": list(val), "num_tokens": list(val.values()), "nll": [each[i] * n for i, n in val.items()]}
        write_table(folder / "val.parquet", rows)
        if halves is not None:
            ids = [*halves, "trained"]
            write_table(
                folder / "split.parquet",
                {
                    "example_id": ids,
                    "part": ["val"] * len(halves) + ["train"],
                    "confidence": [-float(k) for k in range(len(ids))],
                    "subset": [*halves.values(), "confident"],
                },
            )
        tokens = sum(val.values())
        loss = sum(each[i] * n for i, n in val.items()) / tokens if tokens else None
        write_json(
            folder / "metrics.json", {"val_loss": loss, "val_examples": len(val), "seconds": seconds, "steps": 7}
        )
        write_json(folder / "run.json", {"config": config})
        write_json(folder / "manifest.json", {"fields": {"kind": "run", "seed": seed, **(fields or {})}})
        return folder

    def row(self, overrides, target, baseline="ntp", *, state="done", cause=None, common=("model=tiny", "data=demo")):
        command = " ".join(["python train.py", *common, *overrides])
        return {
            "overrides": list(overrides),
            "target": target,
            "baseline": baseline,
            "confidence": "confidence-x",
            "command": command,
            "state": state,
            "cause": cause,
            "log": "logs/3.txt" if cause else None,
            "seconds": 12.3,
        }

    def sweep(self, name, rows, *, common=("model=tiny", "data=demo"), tail="0a1b2c3d") -> Path:
        folder = self.root / "sweeps" / f"{name}-{tail}"
        folder.mkdir(parents=True, exist_ok=True)
        command = f"python train.py ablation={name} {' '.join(common)}"
        content = {
            "name": name,
            "command": command,
            "common": list(common),
            "composed_by": [],
            "runs": rows,
            "shared": [],
        }
        write_json(folder / "manifest.json", content)
        return folder

    def evaluate(
        self,
        run,
        suite,
        round_,
        scores,
        *,
        judge="gpt-4-0613",
        benchmark=None,
        questions=None,
        weights=None,
        record=None,
        served=None,
        settings=None,
    ) -> None:
        """A round of a suite; of each column two questions, half a point below and above, unless they are given."""
        folder = self.root / run / "evaluation"
        folder.mkdir(exist_ok=True)
        names = {"mt_bench": "MT-Bench", "alpaca_eval": "AlpacaEval-2", "medical": "MedQA", "offline": "held-out"}
        file = folder / f"{suite}-{judge}-{benchmark}-{round_}.json"
        content = {"suite": suite, "judge": judge, "benchmark": benchmark or names[suite], "round": round_}
        each = (
            questions
            if questions is not None
            else {column: {"1": score - 0.5, "2": score + 0.5} for column, score in scores.items()}
        )
        content |= {"scores": scores, "questions": each, "weights": weights or {}, "settings": settings or {}}
        write_json(file, {**content, "record": {"served_models": served or [], **(record or {})}})


@pytest.fixture
def made(tmp_path) -> Maker:
    return Maker(tmp_path / "runs")


@pytest.fixture
def mu_sweep(made) -> Maker:
    """Table 9 on the demo: mu 0.1 with two seeds, mu 0.2 with one of two, mu 0.5 failed; NTP of both seeds."""
    made.run("ntp-0", 2.0, halves=None, seed=0)
    made.run("ntp-1", 2.2, halves=None, seed=1)
    made.run("mu0.1-0", {"a": 1.0, "b": 2.0, "c": 2.0, "d": 2.0}, seed=0)
    made.run("mu0.1-1", {"a": 1.2, "b": 2.0, "c": 2.0, "d": 2.5}, seed=1)
    made.run("mu0.2-0", 1.8, seed=0)
    rows = [
        made.row(["recipe.mixup.mu=0.1", "seed=0"], "mu0.1-0", "ntp-0"),
        made.row(["recipe.mixup.mu=0.1", "seed=1"], "mu0.1-1", "ntp-1"),
        made.row(["recipe.mixup.mu=0.2", "seed=0"], "mu0.2-0", "ntp-0"),
        made.row(["recipe.mixup.mu=0.2", "seed=1"], "mu0.2-1", "ntp-1", state="waiting"),
        made.row(["recipe.mixup.mu=0.5", "seed=0"], "mu0.5-0", "ntp-0", state="failed", cause="out of memory"),
    ]
    made.sweep("mu", rows)
    return made
