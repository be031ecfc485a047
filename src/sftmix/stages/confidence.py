"""Stage 2 (section 3.1): score every example under every checkpoint.

Reads the reference's checkpoints or any list of Hugging Face folders; writes nats of each response
(`confidence.parquet`) and, for reading, the confidence of each example (`examples.parquet`). Nothing here depends on
mu, alpha or the target.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sftmix.artifacts import Artifact, fingerprint, making, write_json, write_table
from sftmix.data.encoding import EncodedExample
from sftmix.functional.confidence import confidence, variability
from sftmix.functional.perplexity import perplexity
from sftmix.models.loading import load_causal_lm, load_tokenizer
from sftmix.stages.device import Device
from sftmix.stages.language_model import prepare_language_model
from sftmix.stages.materials import Materials
from sftmix.stages.passport import passport
from sftmix.training.scoring import score

SHOWN_CHARACTERS = 300


def run_confidence(artifact: Artifact, materials: Materials, device: Device, checkpoints: Sequence[Path]) -> None:
    """Score all examples, held-out ones included, under each checkpoint; what an unfinished pass left is kept."""
    with making(artifact, resume=True) as folder:
        if folder is None:
            return
        columns: dict[str, list[Any]] = {"example_id": [], "checkpoint": [], "num_tokens": [], "nll": []}
        encoded: list[EncodedExample] = []
        layout = device.layout
        for number, checkpoint in enumerate(checkpoints, start=1):
            title = f"confidence, checkpoint {number}/{len(checkpoints)}"
            parts = folder / _parts(number, checkpoint)
            encoded, nll, layout = _score_checkpoint(parts, materials, device, checkpoint, title)
            columns["example_id"] += [e.example.id for e in encoded]
            columns["checkpoint"] += [number] * len(encoded)
            columns["num_tokens"] += [e.num_response_tokens for e in encoded]
            columns["nll"] += nll
        write_table(folder / "confidence.parquet", columns)
        write_table(folder / "examples.parquet", _examples(columns, materials))
        write_json(folder / "run.json", passport(materials.config, device._replace(layout=layout)))
        for parts in folder.glob("parts-*"):
            shutil.rmtree(parts)


def _parts(number: int, checkpoint: Path) -> str:
    """Where unfinished figures of these very weights are kept."""
    weights = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(checkpoint.glob("*.safetensors"))]
    return f"parts-{number:02d}-{fingerprint({'weights': weights})}"


def confidence_of(
    columns: dict[str, list[Any]], use: int | Sequence[int] | None
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Ids, confidence and variability of the examples that every counted checkpoint scored.

    Args:
        columns: `example_id, checkpoint, num_tokens, nll`.
        use: which checkpoints count: None (all), k (the last k), or a list of their numbers.
    """
    numbers = sorted(set(columns["checkpoint"]))
    counted = numbers if use is None else numbers[-use:] if isinstance(use, int) else sorted(use)
    place = {number: k for k, number in enumerate(counted)}
    figures: dict[str, dict[int, tuple[int, float]]] = {}
    rows = zip(columns["example_id"], columns["checkpoint"], columns["num_tokens"], columns["nll"], strict=True)
    for example_id, checkpoint, num_tokens, nll in rows:
        if checkpoint in place:
            figures.setdefault(example_id, {})[place[checkpoint]] = (num_tokens, nll)
    ids = [example_id for example_id, scored in figures.items() if len(scored) == len(counted)]
    num_tokens = torch.tensor([[figures[i][c][0] for i in ids] for c in range(len(counted))], dtype=torch.long)
    nll = torch.tensor([[figures[i][c][1] for i in ids] for c in range(len(counted))], dtype=torch.float64)
    by_checkpoint = perplexity(nll, num_tokens)
    return ids, confidence(by_checkpoint), variability(by_checkpoint)


def _score_checkpoint(
    parts: Path, materials: Materials, device: Device, checkpoint: Path, title: str
) -> tuple[list[EncodedExample], list[float], str]:
    """Score under one checkpoint, with its own tokenizer; the run's template, or its own by data.template=tokenizer.

    The examples, the nats of each response, and the layout they were scored in.
    """
    config = materials.config
    tokenizer = load_tokenizer(str(checkpoint), None, None)
    under = materials.encoded_by(tokenizer)
    encoded = [*under.train, *under.val]
    lm, layout = prepare_language_model(load_causal_lm(str(checkpoint), None), config.trainer, device)
    nll = score(
        lm,
        encoded,
        folder=parts,
        title=title,
        device=torch.device(device.name),
        bfloat16=device.precision == "bf16-mixed",
        layout=layout,
        batch_tokens=config.confidence.batch_tokens,
        pad_token_id=tokenizer.pad_token_id,
        show_progress=config.trainer.progress_bar,
    )
    return encoded, nll, layout


def _examples(columns: dict[str, list[Any]], materials: Materials) -> dict[str, list[Any]]:
    """One row an example, for reading: its confidence over all checkpoints, its part, and what it is."""
    ids, conf, spread = confidence_of(columns, None)
    train, val = materials.examples
    known = {e.id: (e, part) for part, examples in (("train", train), ("val", val)) for e in examples}
    found = [known[i] for i in ids]
    return {
        "example_id": ids,
        "confidence": conf.tolist(),
        "variability": spread.tolist(),
        "part": [part for _, part in found],
        "source": [e.source for e, _ in found],
        "row": [e.row for e, _ in found],
        "group": [e.group for e, _ in found],
        "instruction": [e.instruction[:SHOWN_CHARACTERS] for e, _ in found],
        "response": [e.response[:SHOWN_CHARACTERS] for e, _ in found],
    }
