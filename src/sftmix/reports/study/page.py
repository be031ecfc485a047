"""Write the report of a study: the verdict on each claim, all contrasts, the numbers of each seed, and a figure."""

import csv
import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sftmix.analysis.paired import Difference, mean_and_sd
from sftmix.analysis.verdict import SUPPORTED, UNDECIDED, ComparisonVerdict, margin_verdicts
from sftmix.artifacts.files import write_bytes
from sftmix.errors import InputError
from sftmix.evaluation.offline.scores import SUBSETS
from sftmix.provenance.runs import read_config
from sftmix.reports.figures.output import write_report
from sftmix.reports.page import Block, Cell, ReportPage
from sftmix.reports.study.measures import ArmRun, Study
from sftmix.reports.study.protocol import LOSSES, Claim, Contrast, Measure, Protocol
from sftmix.reports.tables.columns import difference_cell, mean_cell
from sftmix.reports.tables.found_runs import with_found_runs
from sftmix.reports.tables.groups import Group, groups_of
from sftmix.sweep.store import SweepRun, find_sweeps
from sftmix.terminal import counted

COLUMNS = ("a", "b", "a minus b [95%]", "sd of seeds", "p", "examples", "seeds", "verdict")
VOID, PENDING = "void", "pending"


class Found(NamedTuple):
    """The difference of a contrast, or why it is not known yet."""

    contrast: Contrast
    difference: Difference | None
    why: str | None = None


class ClaimResult(NamedTuple):
    """A claim with its differences, and the verdict if the primary difference is known."""

    claim: Claim
    primary: Found
    others: tuple[Found, ...]
    verdict: ComparisonVerdict | None


def study_report(
    protocol: Protocol, root: Path, subset_of: Mapping[str, str], given: Sequence[str], composed_by: Sequence[str]
) -> tuple[ReportPage, Path]:
    """Return the page of a study, and the folder of its figure, its numbers and the values of each seed.

    Args:
        root: Folder with the runs of all arms.
        subset_of: Subset of each held-out example, the same for all runs.
        given: Settings of train.py that choose the runs of one model and setting.
        composed_by: Arguments that say where configs are read.

    Raises:
        InputError: If no arm has a complete run, several settings of an arm have, or the model has no margin.
    """
    stored = find_sweeps(root)[0]
    of_ablation = {
        name: groups_of(with_found_runs(name, stored, root, given, composed_by)[0])
        for name in dict.fromkeys(ablation for ablation, _ in protocol.arms.values())
    }
    planned = {seed for seeds in protocol.seeds.values() for seed in seeds}
    groups = {
        arm: _group(arm, overrides, of_ablation[name], planned) for arm, (name, overrides) in protocol.arms.items()
    }
    done = [run.target for group in groups.values() if group is not None for run in group.done]
    if not done:
        raise InputError(f"{root}: no complete run of an arm of this study")
    model = _model(done[0])
    if model not in protocol.margins:
        raise InputError(f"the protocol has margins of {', '.join(protocol.margins)}, and none of the model {model}")
    margin, seeds = protocol.margins[model], protocol.seeds[model]
    by_arm = {arm: _runs_by_seed(group, seeds) for arm, group in groups.items() if group is not None}
    study = Study({arm: runs for arm, runs in by_arm.items() if runs}, subset_of)
    if not study.arms:
        raise InputError(f"{root}: no complete run of the seeds {', '.join(map(str, seeds))} of the protocol")
    results = judged(protocol, study, margin, seeds)
    page = make_page(protocol, study, results, model, margin)
    numbers = {"model": model, "margin": margin, "claims": [_numbers(result) for result in results]}
    from sftmix.reports.study.figure import draw_study

    folder = write_report(root, f"study-{model}", page, numbers, draw_study(protocol, study, results, margin))
    write_bytes(folder / "seeds.csv", per_seed(study).encode())
    return page, folder


def _runs_by_seed(group: Group, seeds: Sequence[int]) -> dict[int, ArmRun]:
    """Return the complete runs of the seeds of the protocol."""
    runs = {_seed(run): ArmRun(run.target) for run in group.done}
    return {seed: runs[seed] for seed in seeds if seed in runs}


def _seed(run: SweepRun) -> int:
    return int(run.seed.partition("=")[2])


def _group(arm: str, overrides: str, groups: Sequence[Group], planned: Collection[int]) -> Group | None:
    """Return the group of an arm that has a complete run of a planned seed, or None. References have other seeds."""
    own = [g for g in groups if " ".join(g.overrides) == overrides and any(_seed(run) in planned for run in g.done)]
    if len(own) > 1:
        which = "; ".join(" ".join(filter(None, (*group.common, group.variant))) for group in own)
        raise InputError(f"arm {arm}: there are runs of {len(own)} settings, choose one by its settings: {which}")
    return own[0] if own else None


def _model(run: Path) -> str:
    config = read_config(run)["model"]
    return str(config.get("name") or Path(str(config["path"])).name)


def judged(protocol: Protocol, study: Study, margin: float, seeds: Sequence[int]) -> list[ClaimResult]:
    """Return the verdict on each claim, with Holm's correction over all claims of the protocol.

    A claim has no verdict before both arms have all seeds of the protocol. It counts in the correction all the same.
    """
    found = [(claim, *_found(study, claim)) for claim in protocol.claims]
    complete = [
        primary.difference
        for _, primary, _ in found
        if primary.difference is not None and len(primary.difference.of_seeds) == len(seeds)
    ]
    verdicts = iter(margin_verdicts(complete, margin, len(found)))
    results = []
    for claim, primary, others in found:
        done = 0 if primary.difference is None else len(primary.difference.of_seeds)
        verdict = None
        if done == len(seeds):
            verdict = _restricted(next(verdicts), claim, study, seeds)
        elif done:
            verdict = ComparisonVerdict(False, PENDING, f"{done} of {len(seeds)} seeds; no verdict before all of them")
        results.append(ClaimResult(claim, primary, others, verdict))
    return results


def _found(study: Study, claim: Claim) -> tuple[Found, tuple[Found, ...]]:
    def of_one(contrast: Contrast) -> Found:
        for arm in (contrast.a, contrast.b):
            if arm not in study.arms:
                return Found(contrast, None, f"arm {arm} has no complete run")
        try:
            return Found(contrast, study.difference(contrast))
        except InputError as error:
            return Found(contrast, None, str(error))

    return of_one(claim.primary), tuple(map(of_one, claim.others))


def _restricted(verdict: ComparisonVerdict, claim: Claim, study: Study, seeds: Sequence[int]) -> ComparisonVerdict:
    """Return the verdict under the conditions of the claim: a gap that is large enough, a loss that is lower."""
    if claim.void_arm is not None:
        gaps = _values(study, claim.void_arm, Measure("gap")) if claim.void_arm in study.arms else {}
        if len(gaps) < len(seeds):
            why = f"the gap of {claim.void_arm} is known for {len(gaps)} of {len(seeds)} seeds"
            return ComparisonVerdict(False, PENDING, why)
        mean = mean_and_sd(list(gaps.values()))[0]
        if mean < claim.void_below:
            expected = f"expected at least {claim.void_below:g}"
            return ComparisonVerdict(False, VOID, f"the gap of {claim.void_arm} is {mean:.4f}, {expected}")
    if claim.only_if_lower is not None and verdict.words == SUPPORTED:
        found = study.difference(claim.only_if_lower)
        if not found.high < 0:
            interval = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
            why = f"{claim.only_if_lower.measure.in_words} is not lower: {interval}"
            return ComparisonVerdict(False, UNDECIDED, why)
    return verdict


def make_page(
    protocol: Protocol, study: Study, results: Sequence[ClaimResult], model: str, margin: float
) -> ReportPage:
    """Return the page of a study: verdicts, other contrasts, and the mean of each arm."""
    seeds = ", ".join(f"{arm} {len(runs)}" for arm, runs in study.arms.items())
    subsets = ", ".join(f"{len(study.ids[name]):,} {name}" for name in SUBSETS)
    head = [
        protocol.title,
        f"model {model}; {counted(len(study.ids[None]), 'held-out example')} ({subsets})",
        f"margin {margin} nats per token",
        f"complete runs of each arm: {seeds}",
    ]
    pending = sum(result.verdict is None or result.verdict.words == PENDING for result in results)
    if pending:
        head.append(f"PRELIMINARY: {counted(pending, 'claim')} of {len(results)} without all seeds of the protocol")
    verdicts = Block("Verdicts, by the primary measure of each claim", ("claim", "contrast"), COLUMNS)
    others = Block("Other measures, without a verdict", ("claim", "contrast"), COLUMNS[:-1])
    for result in results:
        verdicts.rows.append((*_row(study, result.claim.name, result.primary), _verdict_cell(result)))
        others.rows += [_row(study, result.claim.name, found) for found in result.others]
    arms = Block("Arms: mean ± sd over seeds", ("arm",), tuple(m.in_words for m in _measures_of_arms(study)))
    for arm, runs in study.arms.items():
        cells = [_mean(study, arm, measure) for measure in _measures_of_arms(study)]
        arms.rows.append((Cell(f"{arm} ({len(runs)})"), *cells))
    notes = [
        f"supported: the interval is below 0 and a minus b at most -{margin}; negligible: the interval is between "
        f"-{margin} and {margin}; not supported: its lower end is above -{margin}; otherwise undecided",
        f"a verdict holds after Holm's correction over {counted(len(results), 'claim')}, also those without runs",
        "lower is better in every measure except accuracy",
        "intervals are over seeds and held-out examples; every seed has its own training examples; training loss and "
        "ECE have one value for each run, so that their intervals are over seeds",
    ]
    return ReportPage(head[0], head, [verdicts, *([others] if others.rows else []), arms], notes)


def _row(study: Study, claim: str, found: Found) -> tuple[Cell, ...]:
    contrast, difference = found.contrast, found.difference
    labels = (Cell(claim), Cell(f"{contrast.a} minus {contrast.b}, {contrast.measure.in_words}"))
    if difference is None:
        return (*labels, Cell("not run", note=found.why), *(Cell() for _ in COLUMNS[1:-1]))
    sides = [
        mean_cell([study.value(arm, seed, contrast.measure) for seed in study.seeds(contrast)], 4)
        for arm in (contrast.a, contrast.b)
    ]
    sd, seeds = mean_and_sd(difference.of_seeds)[1], len(difference.of_seeds)
    p = Cell() if math.isnan(difference.p) else Cell(f"{difference.p:.2g}", value=difference.p)
    spread = Cell() if sd is None else Cell(f"{sd:.4f}", value=sd)
    counts = (Cell(f"{n:,}", value=n) for n in (difference.num_examples, seeds))
    return (*labels, *sides, difference_cell(difference, 4), spread, p, *counts)


def _verdict_cell(result: ClaimResult) -> Cell:
    return Cell() if result.verdict is None else Cell(result.verdict.words, note=result.verdict.reason)


def _measures_of_arms(study: Study) -> list[Measure]:
    losses = [Measure(name, subset) for name in LOSSES for subset in (None, *SUBSETS)]
    runs = [run for arm in study.arms.values() for run in arm.values()]
    sets = dict.fromkeys(name for run in runs for name in run.evaluations)
    return [*losses, *(Measure(name, set=of) for of in sets for name in ("held-out loss", "Brier", "ECE"))]


def _values(study: Study, arm: str, measure: Measure) -> dict[int, float]:
    """Return a measure of the runs of an arm that have it, by seed."""
    values = {}
    for seed in sorted(study.arms[arm]):
        try:
            values[seed] = study.value(arm, seed, measure)
        except InputError:  # not evaluated
            continue
    return values


def _mean(study: Study, arm: str, measure: Measure) -> Cell:
    values = _values(study, arm, measure)
    return mean_cell(list(values.values()), 4) if values else Cell()


def per_seed(study: Study) -> str:
    """Return the text of a CSV file with each measure of each run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "seed", "measure", "value", "run"])
    writer.writerows(_rows_of_seeds(study))
    return out.getvalue()


def _rows_of_seeds(study: Study) -> Iterator[tuple[object, ...]]:
    for arm, runs in study.arms.items():
        for measure in _measures_of_arms(study):
            for seed, value in _values(study, arm, measure).items():
                yield arm, seed, measure.in_words, f"{value:.6f}", runs[seed].folder.name


def _numbers(result: ClaimResult) -> dict[str, object]:
    contrasts = [
        {"a": f.contrast.a, "b": f.contrast.b, "measure": f.contrast.measure.in_words, "difference": f.difference}
        for f in (result.primary, *result.others)
    ]
    verdict = None if result.verdict is None else result.verdict.in_full
    return {"claim": result.claim.name, "verdict": verdict, "contrasts": contrasts}
