"""The summary at the end of a run, from the files of the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.artifacts.tables import read_table
from sftmix.config.recipe import PLAIN_NTP, is_baseline
from sftmix.data.response_replacement import HIGH, LOW
from sftmix.reports.held_out import HeldOutTable, held_out_table
from sftmix.terminal import counted

RULE, WIDTH = "rule/", 12
SHOWN_AS = {"sftmix": "SFTMix", "neftune": "NEFTune", "instruction_modelling": "instruction modelling"}
EXTREMES = 3
RUN_FILES = [
    "metrics.json",
    "logs/metrics.csv",
    "val.parquet",
    "split.parquet",
    "census.json",
    "answers.json",
    "run.json",
]


def summarize(target: Path, confidence: Path | None, baseline: Path | None) -> str:
    """Return the summary of a finished run as lines for the terminal.

    Args:
        confidence: Folder of the confidence that the run was split by.
        baseline: Folder of the NTP run at the same settings.
    """
    metadata, fields = read_json(target / "run.json"), read_json(target / MANIFEST)["fields"]
    name = recipe_name(fields, metadata["config"]["recipe"]["name"])
    is_demo, lines = bool(metadata["config"]["data"]["demo"]), [""]
    split = read_table(target / "split.parquet") if (target / "split.parquet").is_file() else None
    scores = target if confidence is None and (target / "examples.parquet").is_file() else confidence
    if scores is not None and split is not None:
        examples = _with_split(read_table(scores / "examples.parquet"), split)
        lines += _planted(examples) if is_demo else _extremes(examples)
    lines += _losses(held_out_table(target, baseline, name, split))
    lines += _answers(target)
    lines += _written(target, confidence, baseline)
    is_sweepable = is_demo and fields["recipe"]["mixup"] is not None
    lines += _next_commands(is_sweepable, is_baseline(fields), baseline, reuses_scores=confidence is not None)
    return "\n".join(lines)


class ScoredExample(NamedTuple):
    """A scored example of one of the two subsets."""

    group: str
    instruction: str
    confidence: float  # Over the checkpoints that the run used
    subset: str


class Family(NamedTuple):
    """A planted group of the embedded data."""

    name: str
    num_examples: int
    share_confident: float  # Share of its examples in the confident subset
    perplexity: float  # Median of the mean perplexity over the checkpoints


class Recovery(NamedTuple):
    """How well confidence recovers what was planted."""

    title: str
    found: str  # The AUC in words; empty if there is only one kind of example
    families: list[Family]  # The most confident first


def recipe_name(fields: Mapping[str, Any], recipe: str) -> str:
    """Return NTP for the baseline, or the name of the recipe with what it adds or changes."""
    if is_baseline(fields):
        return "NTP"
    terms = fields["recipe"]
    noise, prompts = terms.get("neftune_alpha"), terms["ntp"].get("prompt_weight")
    name = _one_line(SHOWN_AS.get(recipe, recipe), 40)
    if recipe == "ntp":
        changed = {key: value for key, value in terms["ntp"].items() if value != PLAIN_NTP.get(key, value)}
        name += "".join(f", {key}={value}" for key, value in changed.items() if key != "prompt_weight")
        name += ", with callbacks" if fields.get("callbacks") else ""
    name += "+noise" if noise is not None and recipe != "neftune" else ""
    return name + ("+prompts" if prompts is not None and recipe != "instruction_modelling" else "")


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return the probability that a positive is above a negative; a tie counts half (Mann-Whitney statistic)."""
    from scipy.stats import rankdata

    rank_sum = rankdata([*positive, *negative])[: len(positive)].sum()
    return float(rank_sum - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative))


def _with_split(examples: Mapping[str, list[Any]], split: Mapping[str, list[Any]]) -> list[ScoredExample]:
    group, instruction = (
        dict(zip(examples["example_id"], examples[name], strict=True)) for name in ("group", "instruction")
    )
    rows = zip(split["example_id"], split["confidence"], split["subset"], strict=True)
    return [ScoredExample(group[i], instruction[i], confidence, subset) for i, confidence, subset in rows if subset]


def recovery(examples: Sequence[ScoredExample]) -> Recovery:
    """Return how well confidence recovers the planted difficulty or quality of the embedded data."""
    groups = {example.group for example in examples}
    if groups <= {HIGH, LOW}:
        planted, whose, easy = "quality", "an example of high quality is more confident than one of low quality", HIGH
    else:
        planted, whose, easy = "difficulty", "an example that follows a rule is more confident than another", RULE
    upper = [example.confidence for example in examples if example.group.startswith(easy)]
    lower = [example.confidence for example in examples if not example.group.startswith(easy)]
    found = f"AUC {auc(upper, lower):.3f}: how often {whose} (0.5 is chance)" if upper and lower else ""
    families = []
    for group in groups:
        members = [example for example in examples if example.group == group]
        share = sum(example.subset == "confident" for example in members) / len(members)
        perplexity = median(-example.confidence for example in members)
        families.append(Family(group, len(members), share, perplexity))
    families.sort(key=lambda family: family.perplexity)
    return Recovery(f"Does confidence recover the planted {planted}?", found, families)


def _planted(examples: Sequence[ScoredExample]) -> list[str]:
    title, found, families = recovery(examples)
    lines = [title, *([f"  {found}"] if found else [])]
    lines.append(f"  {'family':<18}{'examples':>10}{'in the confident subset':>26}{'median perplexity':>20}")
    for name, number, share, perplexity in families:
        lines.append(f"  {_one_line(name, 18):<18}{number:>10}{share:>26.0%}{perplexity:>20.2f}")
    return [*lines, ""]


def _extremes(examples: Sequence[ScoredExample]) -> list[str]:
    order = sorted(examples, key=lambda example: -example.confidence)
    lines = [f"Confidence of {counted(len(order), 'example')} (minus the mean perplexity over the checkpoints)"]
    for word, chosen in (("most", order[:EXTREMES]), ("least", order[-EXTREMES:])):
        lines.append(f"  {word} confident")
        lines += [f"  {example.confidence:>14.2f}  {_one_line(example.instruction, 90)}" for example in chosen]
    return [*lines, ""]


def _losses(found: HeldOutTable | None) -> list[str]:
    if found is None:
        return ["No held-out loss: nothing was held out (data.val_fraction=0.1 takes a tenth).", ""]
    has_baseline = any(row.baseline is not None for row in found.rows)
    last = max(WIDTH, len(found.name) + 2)
    columns = [("before", WIDTH), *([("NTP", WIDTH)] if has_baseline else []), (found.name, last)]
    after = "  difference [95%]" if has_baseline else ""
    lines = [
        f"Held-out loss over {counted(found.num_examples, 'example')}, nats per response token (lower is better)",
        "  " + " " * 18 + "".join(f"{column:>{width}}" for column, width in columns) + after,
    ]
    for subset, before, baseline, own, difference in found.rows:
        cells = [" " * WIDTH if before is None else f"{before:>{WIDTH}.3f}"]
        cells += [" " * WIDTH if baseline is None else f"{baseline:>{WIDTH}.3f}"] if has_baseline else []
        cells.append(f"{own:>{last}.3f}")
        lines.append(f"  {_one_line(subset, 18):<18}" + "".join(cells) + (f"  {difference}" if difference else ""))
    return [*lines, *(f"  {remark}" for remark in found.remarks), ""]


def _answers(target: Path) -> list[str]:
    kind = "held-out" if read_json(target / "metrics.json")["val_examples"] else "training"
    lines = [f"What the tuned model answers to {kind} instructions"]
    for shown in read_json(target / "answers.json"):
        group = f"  ({_one_line(shown['group'], 40)})" if shown["group"] else ""
        lines.append(f"  > {_one_line(shown['instruction'], 110)}{group}")
        if "before" in shown:  # runs of earlier versions have only the answer of the tuned model
            lines.append(f"    before    {_one_line(shown['before'], 100) or '(empty)'}")
        lines.append(f"    answer    {_one_line(shown['answer'], 100) or '(empty)'}")
        lines.append(f"    in data   {_one_line(shown['response'], 100)}")
    return [*lines, ""]


def _written(target: Path, confidence: Path | None, baseline: Path | None) -> list[str]:
    rows = [
        (target / "model", "the tuned model, an ordinary Hugging Face folder"),
        (target, ", ".join(name for name in RUN_FILES if (target / name).exists())),
    ]
    if (target / "adapter").is_dir():
        rows.insert(1, (target / "adapter", "its adapter only, a PEFT folder"))
    if offline := sorted(target.glob("wandb/offline-run-*")):
        rows.append((offline[-1], "send it by `wandb sync`"))
    if confidence is not None:
        rows.append((confidence, "confidence.parquet, examples.parquet"))
    if baseline is not None:
        rows.append((baseline, "the NTP baseline"))
    return ["Where things are", *(f"  {path}  {what}" for path, what in rows), ""]


def _next_commands(is_demo: bool, is_ntp: bool, baseline: Path | None, *, reuses_scores: bool) -> list[str]:
    again = "; nothing is scored again" if reuses_scores else ""
    commands = []
    if baseline is None and not is_ntp:
        commands.append(
            "the same command with recipe=ntp and without settings of confidence, reference, split and recipe"
            "     # the baseline"
        )
    if is_demo:
        commands += [
            f"the same command with -m recipe.mixup.mu=0.1,0.2,0.5     # a sweep{again}",
            "python train.py model=local model.path=FOLDER model.lr=2e-5 data=alpaca data.path=FILE.json",
        ]
    elif not commands:
        commands = [f"the same command with seed=1     # one seed says little{again}"]
    return ["Next", *(f"  {command}" for command in commands)]


def _one_line(text: str, width: int) -> str:
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."
