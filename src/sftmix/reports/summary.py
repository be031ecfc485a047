"""The summary at the end of a run, from the files of the run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sftmix.analysis.paired import Difference
from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.artifacts.tables import read_table
from sftmix.data.response_replacement import HIGH, LOW
from sftmix.provenance.runs import read_held_out
from sftmix.reports.tables.columns import held_out_metrics, pair_up
from sftmix.reports.tables.compare import compare_held_out
from sftmix.terminal import counted

RULE, WIDTH = "rule/", 12
SHOWN_AS = {"sftmix": "SFTMix", "neftune": "NEFTune", "instruction_modelling": "instruction modelling"}
EXTREMES = 3
RUN_FILES = (
    "metrics.json",
    "logs/metrics.csv",
    "val.parquet",
    "split.parquet",
    "census.json",
    "answers.json",
    "run.json",
)
HARDLY = 0.01


def summarize(target: Path, confidence: Path | None, baseline: Path | None) -> str:
    """Return the summary of a finished run as lines for the terminal.

    Args:
        target: Folder of the run.
        confidence: Folder of the confidence that the run was split by, or None.
        baseline: Folder of the NTP run at the same settings, or None.
    """
    metadata, fields = read_json(target / "run.json"), read_json(target / MANIFEST)["fields"]
    name = _name(fields["recipe"], metadata["config"]["recipe"]["name"])
    is_demo, lines = bool(metadata["config"]["data"]["demo"]), [""]
    split = read_table(target / "split.parquet") if (target / "split.parquet").is_file() else None
    if confidence is not None and split is not None:
        examples = _with_split(read_table(confidence / "examples.parquet"), split)
        lines += _planted(examples) if is_demo else _extremes(examples)
    lines += _losses(target, baseline, split, name, _names_of_subsets(fields.get("split")))
    lines += _answers(target)
    lines += _written(target, confidence, baseline)
    lines += _next_commands(is_demo, name, baseline)
    return "\n".join(lines)


def _name(terms: Mapping[str, Any], recipe: str) -> str:
    """Return the name of a run: NTP, whichever command made the run, or its recipe with what was added."""
    noise, prompts = terms.get("neftune_alpha"), terms["ntp"].get("prompt_weight")
    if terms["mixup"] is None and noise is None and prompts is None:
        return "NTP"
    more = ("+noise" if noise is not None and recipe != "neftune" else "") + (
        "+prompts" if prompts is not None and recipe != "instruction_modelling" else ""
    )
    return _one_line(SHOWN_AS.get(recipe, recipe), 40) + more


def _names_of_subsets(split: Mapping[str, Any] | None) -> dict[str, str]:
    if split is None:
        names = ("confident subset", "unconfident subset")
    elif split["by"] == "group":
        names = (f"group {split['confident']}", "other groups")
    else:
        names = (
            ("first subset", "second subset") if split["by"] == "random" else ("shorter responses", "longer responses")
        )
    return dict(zip(("confident", "unconfident"), names, strict=True))


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return the probability that a positive is above a negative, ties counted half (Mann-Whitney statistic)."""
    from scipy.stats import rankdata

    rank_sum = rankdata([*positive, *negative])[: len(positive)].sum()
    return float(rank_sum - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative))


def _with_split(examples: Mapping[str, list[Any]], split: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the examples of the split of a run with their confidence under the checkpoints that count."""
    place = {example_id: k for k, example_id in enumerate(examples["example_id"])}
    chosen = [k for k, subset in enumerate(split["subset"]) if subset]
    places = [place[split["example_id"][k]] for k in chosen]
    return {
        **{name: [split[name][k] for k in chosen] for name in ("confidence", "subset")},
        **{name: [examples[name][k] for k in places] for name in ("group", "instruction")},
    }


def _planted(examples: Mapping[str, list[Any]]) -> list[str]:
    rows = list(zip(examples["group"], examples["confidence"], examples["subset"], strict=True))
    if {group for group, _, _ in rows} <= {HIGH, LOW}:
        planted, whose, easy = "quality", "an example of high quality is more confident than one of low quality", HIGH
    else:
        planted, whose, easy = "difficulty", "an example that follows a rule is more confident than another", RULE
    upper = [c for group, c, _ in rows if group.startswith(easy)]
    lower = [c for group, c, _ in rows if not group.startswith(easy)]
    lines = [f"Does confidence recover the planted {planted}?"]
    if upper and lower:
        lines.append(f"  AUC {auc(upper, lower):.3f}: how often {whose} (0.5 is chance)")
    lines.append(f"  {'family':<18}{'examples':>10}{'in the confident subset':>26}{'median perplexity':>20}")
    families = {group: [(c, subset) for g, c, subset in rows if g == group] for group in {g for g, _, _ in rows}}
    for group, members in sorted(families.items(), key=lambda item: -median(c for c, _ in item[1])):
        share = sum(subset == "confident" for _, subset in members) / len(members)
        lines.append(
            f"  {_one_line(group, 18):<18}{len(members):>10}{share:>24.0%}{-median(c for c, _ in members):>20.2f}"
        )
    return [*lines, ""]


def _extremes(examples: Mapping[str, list[Any]]) -> list[str]:
    order = sorted(range(len(examples["confidence"])), key=lambda i: -examples["confidence"][i])
    lines = [f"Confidence of {counted(len(order), 'example')} (minus the mean perplexity over the checkpoints)"]
    for word, chosen in (("most", order[:EXTREMES]), ("least", order[-EXTREMES:])):
        lines.append(f"  {word} confident")
        lines += [f"  {examples['confidence'][i]:>14.2f}  {_one_line(examples['instruction'][i], 90)}" for i in chosen]
    return [*lines, ""]


def _losses(
    target: Path,
    baseline: Path | None,
    split: Mapping[str, list[Any]] | None,
    name: str,
    names: Mapping[str, str],
) -> list[str]:
    metrics = read_json(target / "metrics.json")
    if not metrics["val_examples"]:
        return ["No held-out loss: nothing was held out (data.val_fraction=0.1 takes a tenth).", ""]
    ours = read_held_out(target)
    theirs = read_held_out(baseline) if baseline is not None else None
    last = max(WIDTH, len(name) + 2)
    columns = [("before", WIDTH), *([("NTP", WIDTH)] if theirs else []), (name, last)]
    after = "  difference [95%]" if theirs else ""
    lines = [
        f"Held-out loss over {counted(len(ours.nll), 'example')}, nats per response token (lower is better)",
        "  " + " " * 18 + "".join(f"{column:>{width}}" for column, width in columns) + after,
    ]
    for subset, ids in _by_subset(list(ours.nll), split, names):
        before = [f"{metrics['val_loss_before']:>{WIDTH}.3f}" if subset == "all" else " " * WIDTH]
        values = [f"{theirs.over(ids):>{WIDTH}.3f}"] if theirs else []
        values.append(f"{ours.over(ids):>{last}.3f}")
        difference = ""
        if theirs:
            paired = pair_up([(held_out_metrics(ours, ids), held_out_metrics(theirs, ids))])
            difference = "" if paired is None else f"  {_interval(paired.difference)}"
        lines.append(f"  {_one_line(subset, 18):<18}" + "".join(before + values) + difference)
    if baseline is not None and (compared := compare_held_out(target, baseline)) is not None:
        seeds = len(compared.difference.of_seeds)
        over = "" if seeds == 1 else f"over {seeds} seeds {_interval(compared.difference)}: "
        lines.append(f"  {name} against NTP: {over}{compared.verdict.in_full}.")
    if metrics["val_loss"] > (1 - HARDLY) * metrics["val_loss_before"]:
        lines.append(
            f"  The loss hardly fell ({metrics['val_loss_before']:.3f} to {metrics['val_loss']:.3f}): is "
            f"model.lr={metrics['lr']:g} too low, or {counted(metrics['steps'], 'step')} too few?"
        )
    return [*lines, ""]


def _interval(found: Difference) -> str:
    interval = "" if math.isnan(found.low) else f" [{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.mean:+.4f}{interval}"


def _by_subset(
    val_ids: list[str], split: Mapping[str, list[Any]] | None, names: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    subset_of = {} if split is None else dict(zip(split["example_id"], split["subset"], strict=True))
    subsets = [(name, [i for i in val_ids if subset_of.get(i) == subset]) for subset, name in names.items()]
    return [("all", val_ids), *((name, members) for name, members in subsets if members)]


def _answers(target: Path) -> list[str]:
    kind = "held-out" if read_json(target / "metrics.json")["val_examples"] else "training"
    lines = [f"What the tuned model answers to {kind} instructions"]
    for shown in read_json(target / "answers.json"):
        group = f"  ({_one_line(shown['group'], 40)})" if shown["group"] else ""
        lines.append(f"  > {_one_line(shown['instruction'], 110)}{group}")
        lines.append(f"    answer    {_one_line(shown['answer'], 100)}")
        lines.append(f"    in data   {_one_line(shown['response'], 100)}")
    return [*lines, ""]


def _written(target: Path, confidence: Path | None, baseline: Path | None) -> list[str]:
    rows = [
        (target / "model", "the tuned model, an ordinary Hugging Face folder"),
        (target, ", ".join(name for name in RUN_FILES if (target / name).exists())),
    ]
    if (target / "adapter").is_dir():
        rows.insert(1, (target / "adapter", "its adapter only, a PEFT folder"))
    offline = sorted(target.glob("wandb/offline-run-*"))
    if offline:
        rows.append((offline[-1], "send it by `wandb sync`"))
    if confidence is not None:
        rows.append((confidence, "confidence.parquet, examples.parquet"))
    if baseline is not None:
        rows.append((baseline, "the NTP baseline"))
    return ["Where things are", *(f"  {path}  {what}" for path, what in rows), ""]


def _next_commands(is_demo: bool, name: str, baseline: Path | None) -> list[str]:
    commands = []
    if baseline is None and name != "NTP":
        commands.append(
            "the same command with recipe=ntp, and nothing of the reference, split or recipe     # the baseline"
        )
    if is_demo:
        commands += [
            "python train.py -m recipe.mixup.mu=0.1,0.2,0.5     # another weight: the reference is not tuned again",
            "python train.py model=local model.path=FOLDER model.lr=2e-5 data=alpaca data.path=FILE.json",
        ]
    elif not commands:
        commands = ["the same command with seed=1     # one seed says little; the reference is not tuned again"]
    return ["Next", *(f"  {command}" for command in commands)]


def _one_line(text: str, width: int) -> str:
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."
