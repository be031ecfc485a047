"""The page of mode=plan: what a run or the runs of a sweep need, with the stages that they share counted once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sftmix.estimate.cost import BYTES, host_bytes, states_bytes
from sftmix.estimate.fitting import NOT_COUNTED_GIB, fits
from sftmix.estimate.hardware import HARDWARE
from sftmix.estimate.memory import GIB
from sftmix.stages.cost import ASSUMED, PipelineCost
from sftmix.stages.device_choice import planned_device
from sftmix.stages.inputs import quantized_by
from sftmix.stages.memory_choice import choose_memory_settings
from sftmix.stages.requirements import Speed, StageNeeds, counted_cost, speed_of, stage_needs
from sftmix.stages.workload import MOST_STEPS, CountedData, published_examples
from sftmix.sweep.jobs import PlannedRun
from sftmix.terminal import one_line

GB = 1e9
HEAD = f"  {'stage':<11}{'steps':>8}{'tokens':>10}{'micro-batches':>15}{'GiB state':>11}{'peak':>7}{'hours':>8}"
NOT_PLANNED = "not in it   evaluation and the price of a judge: python eval.py suite=... judge=... dry_run=true"


@dataclass
class _Page:
    """What was found for all runs: the different stages by the names of their folders, and what was read."""

    stages: dict[str, StageNeeds] = field(default_factory=dict)
    speeds: dict[str, Speed] = field(default_factory=dict)
    users: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    data: dict[Path, int] = field(default_factory=dict)  # Bytes of the artifacts of data sets
    costs: dict[int, PipelineCost] = field(default_factory=dict)  # By the number of the run, where sizes are known


def planned(runs: Sequence[PlannedRun]) -> str:
    """Return the page of mode=plan in lines."""
    page = _Page()
    for number, run in enumerate(runs, start=1):
        _add(page, number, run)
    every, is_single = list(page.stages.values()), len(runs) == 1
    what = runs[0].plan.target.folder.name if is_single else f"{len(runs)} runs of {len(every)} different stages"
    devices = [f"device      {words}" for words in dict.fromkeys(_device(needs) for needs in every)]
    lines = [f"plan        {what}", *devices, *dict.fromkeys(page.notes)]
    if not is_single:
        lines += [f"run {number:<8}{one_line(' '.join(run.overrides))}" for number, run in enumerate(runs, start=1)]
    lines += ["", HEAD + (f"{'GPU-hours':>11}" if _on_gpu(every[0]) else "") + ("" if is_single else "  of runs")]
    lines += [_row(page, name, is_single) for name in page.stages]
    return "\n".join(
        [
            *lines,
            "",
            *_time(page),
            *_costs(page, is_single),
            *_memory(every),
            *_states(page),
            *_host_and_disk(page),
            NOT_PLANNED,
        ]
    )


def _add(page: _Page, number: int, run: PlannedRun) -> None:
    config, plan = run.config, run.plan
    device = planned_device(config.trainer, quantized_by(config), on_gpu=config.plan.gpu in HARDWARE)
    if device.accelerator == "gpu":
        models = [config.model, *([config.reference.model] if plan.tunes_reference else [])]
        device, chosen = choose_memory_settings(config, device, models, HARDWARE[config.plan.gpu].memory_gib)
        page.notes += [] if chosen is None else [f"settings    {chosen}"]
    data = CountedData(config, plan.reads_reference)
    for needs in stage_needs(config, plan, device, data, lambda artifact: artifact.folder.name in page.stages):
        page.stages[needs.artifact.folder.name] = needs
        size = "" if isinstance(needs.shape, str) else f"{needs.shape.num_parameters:,} parameters, "
        page.notes.append(f"model       {needs.model.title}: {size}dimensions of {needs.dimensions}")
    speed = speed_of(config, plan, device, page.stages[plan.target.folder.name])
    for name in page.stages:
        page.speeds.setdefault(name, speed)
    for artifact in {id(a): a for a in (plan.reference, plan.confidence, plan.target) if a is not None}.values():
        if artifact.folder.name in page.stages:
            page.users.setdefault(artifact.folder.name, []).append(number)
    page.notes += _data_notes(run, data)
    page.data |= data.sizes
    if (cost := counted_cost(config, plan, data)) is not None:
        page.costs[number] = cost


def _device(needs: StageNeeds) -> str:
    if not _on_gpu(needs):
        return needs.device.in_words
    gpu = needs.config.plan.gpu
    hardware = HARDWARE[gpu]
    return f"{needs.device.in_words}; {hardware.title} with {hardware.memory_gib} GiB (plan.gpu={gpu})"


def _on_gpu(needs: StageNeeds) -> bool:
    return needs.device.accelerator == "gpu"


def _data_notes(run: PlannedRun, counted: CountedData) -> list[str]:
    """Return how steps and tokens are known, in lines."""
    config, data = run.config, run.config.data
    if counted.why_unknown is not None:
        count = published_examples(config)
        number = "an unknown number of examples" if count is None else f"about {count:,} examples by its page"
        why = counted.why_unknown.partition(";")[0]
        return [
            f"data        {data.title}: not counted, {why}",
            f"            upper bounds instead: {number}, each of data.max_seq_len={data.max_seq_len} tokens; "
            f"plan.tokenizer=FOLDER counts with another tokenizer",
        ]
    by = "" if config.plan.tokenizer is None else f" with another tokenizer: {config.plan.tokenizer}"
    pairs = ""
    if config.needs_confidence and run.plan.confidence is not None and not run.plan.confidence.is_complete:
        pairs = ", pairs of random subsets: nothing is scored yet"
    return [
        f"data        {data.title}: steps and tokens are counted{by}",
        f"            micro-batches of the first epoch ({MOST_STEPS:,} steps with the most tokens){pairs}",
    ]


def _row(page: _Page, name: str, is_single: bool) -> str:
    needs = page.stages[name]
    work, memory, hours = needs.workload, needs.memory(), needs.hours(page.speeds[name])
    most = "<" if work.is_bound else ""
    steps = "?" if work.num_steps is None else f"{work.num_steps:,}"
    steps = "" if needs.is_scoring else steps
    tokens = "?" if work.num_tokens is None else f"{most}{work.num_tokens / 1e6:,.1f}M"
    size = f"{work.num_micro_batches} x {most}{work.largest:,}"
    state, peak = ("-", "-") if isinstance(memory, str) else (f"{memory[0]:.1f}", f"{max(memory[1].values()):.1f}")
    line = f"  {needs.title:<11}{steps:>8}{tokens:>10}{size:>15}{state:>11}{peak:>7}{_hours(hours):>8}"
    if _on_gpu(needs):
        line += f"{_hours(None if hours is None else hours * needs.device.world_size):>11}"
    if not is_single:
        line += f"  {', '.join(map(str, page.users[name]))}"
    return line + ("  complete" if needs.artifact.is_complete else "")


def _hours(hours: float | None) -> str:
    if hours is None:
        return "?"
    return f"{hours:,.1f}" if hours >= 10 or hours == 0 else f"{hours:.2f}" if hours >= 0.01 else "<0.01"


def _time(page: _Page) -> list[str]:
    """Return the sum of the hours, and how the speed is known."""
    found = [(needs, needs.hours(page.speeds[name])) for name, needs in page.stages.items()]
    if all(hours is None for _, hours in found):
        return ["time        no figure: the number of parameters or of examples is unknown"]
    total = sum(hours or 0.0 for _, hours in found)
    on_all = sum((hours or 0.0) * needs.device.world_size for needs, hours in found)
    most = "at most " if any(needs.workload.is_bound for needs, _ in found) else ""
    also = f", {_hours(on_all)} GPU-hours" if _on_gpu(found[0][0]) else ""
    unknown = ", without the stages of which it is unknown" if any(hours is None for _, hours in found) else ""
    lines = [f"time        {most}{_hours(total)} hours one after the other{also}{unknown}"]
    lines += [f"            speed {words}" for words in dict.fromkeys(s.in_words for s in page.speeds.values())]
    if any(needs.is_bound_by_links(page.speeds[name]) for name, needs in page.stages.items()):
        lines.append(
            "            micro-batches are so small that the links between the GPUs decide: at their peak, so it is a "
            "lower bound"
        )
    return lines


def _costs(page: _Page, is_single: bool) -> list[str]:
    """Return what each run costs with its split, as if it shared no stage with another run and none were finished."""
    numbers = {number: "" if is_single else f"run {number}: " for number in page.costs}
    lines = [f"{'cost':<12}{numbers[number]}{cost.in_words}" for number, cost in page.costs.items()]
    return [*lines, f"{'':12}{ASSUMED}"] if lines else []


def _memory(stages: Sequence[StageNeeds]) -> list[str]:
    """Return the memory of a GPU by part, and what makes fit what does not."""
    lines = list[str]()
    for needs in stages:
        memory, data = needs.memory(), needs.config.data.title
        title = "memory      " + (
            f"scoring by {needs.model.title} on {data}: "
            if needs.is_scoring
            else f"{needs.title} of {needs.model.title} on {data}: "
        )
        if isinstance(memory, str) or isinstance(needs.shape, str) or isinstance(needs.setup, str):
            lines.append(f"{title}no figure, {memory}")
            continue
        state, instants = memory
        peak, available = max(instants.values()), HARDWARE[needs.config.plan.gpu].memory_gib
        parts = ", ".join(f"{name} {gib:.1f}" for name, gib in instants.items())
        does = "fits" if fits(peak, available) else "does not fit"
        lines.append(
            f"{title}{does} in {available} GiB: {peak:.1f} and {NOT_COUNTED_GIB:.1f} for CUDA, NCCL and gaps (assumed)"
        )
        what = "weights" if needs.is_scoring else "state"
        lines.append(f"            {what} {state:.1f}; instants with it: {parts}")
        if does != "fits":
            lines += [f"            {line}" for line in needs.advice]
        elif needs.config.trainer.attention == "auto":
            lines.append(
                f"            flash attention is assumed; without it (trainer.attention=sdpa) {needs.masked_peak():.1f}"
            )
    return list(dict.fromkeys(lines))


def _states(page: _Page) -> list[str]:
    """Return how large training states are and how often they are written, in lines."""
    found = list[str]()
    for name, needs in page.stages.items():
        hours, trainer = needs.hours(page.speeds[name]), needs.config.trainer
        if not needs.num_trained or hours == 0:
            continue
        every = [f"{trainer.save_every_minutes:g} minutes"] if trainer.save_every_minutes else []
        every += [f"{trainer.save_every_n_steps:,} steps"] if trainer.save_every_n_steps else []
        size = states_bytes(needs.num_trained, keep=0) / GB
        seconds = 60 * (trainer.save_every_minutes or 0)
        share = f": {size / seconds:.1%} of the time on a disk of 1 GB/s (assumed)" if seconds else ""
        found.append(
            f"states      {size:,.1f} GB each for {needs.model.title}, written every {' or '.join(every)}{share}; "
            f"tensor by tensor, so neither GPU nor host needs memory for them"
        )
    return list(dict.fromkeys(found))


def _host_and_disk(page: _Page) -> list[str]:
    sizes = [needs.shape.num_parameters for needs in page.stages.values() if not isinstance(needs.shape, str)]
    if not sizes:
        return ["disk        no figure: the dimensions of the model are unknown"]
    exported = max(
        BYTES[needs.model.dtype] * needs.shape.num_parameters
        for needs in page.stages.values()
        if not isinstance(needs.shape, str)
    )
    stays = highest = sum(page.data.values())
    for needs in page.stages.values():
        disk = (0, 0) if needs.artifact.is_complete else needs.disk() or (0, 0)
        highest = max(highest, stays + sum(disk))
        stays += disk[0]
    data = f"{sum(page.data.values()) / GB:.2f} GB of data" if page.data else "without the data"
    return [
        f"host        {host_bytes(max(sizes)) / GIB:.1f} GiB at its highest, on the first node: all weights in "
        f"float32, when they are read and when the export is checked; {exported / GIB:.1f} GiB when they are gathered "
        f"for the export; ranks other than the first hold none",
        f"disk        {highest / GB:,.1f} GB at its highest under root, of which {stays / GB:,.1f} GB stay: models, "
        f"{data}; checkpoints and training states go",
    ]
