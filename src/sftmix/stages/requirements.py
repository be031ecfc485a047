"""What the stages of a run need before they start: memory, operations, time and disk (mode=plan)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sftmix.artifacts.artifact import Artifact, find_artifacts
from sftmix.artifacts.manifest import read_json
from sftmix.config.model import Model
from sftmix.config.schema import Config
from sftmix.distributed.device import Device, num_cores
from sftmix.errors import InputError
from sftmix.estimate.cost import num_flops, recomputed_flops, saved_bytes, states_bytes, step_traffic
from sftmix.estimate.fitting import advise, advise_scoring
from sftmix.estimate.hardware import HARDWARE, PEAK_OF_A_CORE
from sftmix.estimate.memory import GIB, TrainingSetup, peak_bytes, scoring_bytes, state_bytes, weight_bytes
from sftmix.estimate.shape import ModelShape
from sftmix.stages.cost import SAME, PipelineCost, Sizes, TokensOfPass, pipeline_cost, scored_checkpoints
from sftmix.stages.memory_choice import model_config, setup_of, shape_of
from sftmix.stages.plan import Plan, is_reference, reference_config
from sftmix.stages.workload import (
    CountedData,
    Workload,
    matched_compute,
    scored_tokens,
    scoring_workload,
    target_examples,
    training_workload,
    with_epochs,
)


@dataclass(frozen=True)
class StageNeeds:
    """What a stage needs.

    Attributes:
        title: reference, confidence, target, average or ntp (a target that can serve as the reference).
        dimensions: Where the dimensions of the model are from, in words.
        setup: What the memory of a GPU depends on, or why it has no closed form.
        num_checkpoints: Checkpoints that the stage writes.
    """

    title: str
    artifact: Artifact
    config: Config
    device: Device
    shape: ModelShape | str
    dimensions: str
    workload: Workload
    setup: TrainingSetup | str
    num_checkpoints: int = 0

    @property
    def model(self) -> Model:
        """The model that is tuned, or that scores."""
        return self.config.model

    @property
    def is_scoring(self) -> bool:
        """Whether the stage scores examples instead of tuning a model."""
        return self.title in ("confidence", "average")

    @property
    def num_trained(self) -> int:
        """Number of trained parameters; 0 for scoring and if the dimensions are unknown."""
        if isinstance(self.shape, str) or self.is_scoring:
            return 0
        lora = self.model.lora
        return self.shape.num_parameters if lora is None else self.shape.lora_parameters(lora.r)

    @property
    def num_flops(self) -> int | None:
        """Operations of the model's matrices, or None if they are unknown."""
        if isinstance(self.shape, str) or self.workload.num_tokens is None:
            return None
        num_parameters, num_tokens = self.shape.num_parameters, self.workload.num_tokens
        has_pass = self.num_trained > 0 and self.config.recipe.ntp.has_dro_pass
        weighing = num_flops(num_parameters, 0, num_tokens) if has_pass else 0
        return num_flops(num_parameters, self.num_trained, num_tokens) + weighing

    def hours(self, speed: "Speed") -> float | None:
        """Return the time that the stage takes, 0 if it is complete, or None if it is unknown."""
        if self.artifact.is_complete:
            return 0.0
        flops, shape = self.num_flops, self.shape
        if flops is None or isinstance(shape, str) or self.workload.num_tokens is None:
            return None
        if not speed.is_measured and self.num_trained and self.config.trainer.activation_checkpointing == "full":
            flops += recomputed_flops(shape.num_parameters, self.workload.num_tokens)
        return max(flops / speed.flops_per_second, self._link_seconds(speed)) / 3600

    def _link_seconds(self, speed: "Speed") -> float:
        """Return the least time that sending weights and gradients between the GPUs of a node takes."""
        steps = self.workload.num_steps
        if speed.link is None or steps is None or isinstance(self.setup, str) or isinstance(self.shape, str):
            return 0.0
        micro_batches = self.workload.num_micro_batches
        traffic = step_traffic(self.setup, self.shape.num_parameters, self.num_trained, micro_batches)
        return steps * traffic / speed.link

    def is_bound_by_links(self, speed: "Speed") -> bool:
        """Return whether sending weights and gradients takes longer than computing them."""
        return (self.num_flops or 0) / speed.flops_per_second < self._link_seconds(speed)

    def memory(self) -> tuple[float, dict[str, float]] | str:
        """Return the state and the instants of a step or a scored batch in GiB, or why they are unknown."""
        if isinstance(self.setup, str):
            return self.setup
        if isinstance(self.shape, str):
            return self.shape
        state = (weight_bytes if self.is_scoring else state_bytes)(self.shape, self.setup)
        return state / GIB, {name: b / GIB for name, b in self._instants(self.shape, self.setup).items() if b}

    def _instants(self, shape: ModelShape, setup: TrainingSetup) -> dict[str, float]:
        return (scoring_bytes if self.is_scoring else peak_bytes)(shape, setup)

    def masked_peak(self) -> float:
        """Return the peak in GiB if attention reads a mask over packed sequences."""
        assert isinstance(self.setup, TrainingSetup)
        assert isinstance(self.shape, ModelShape)
        return max(self._instants(self.shape, replace(self.setup, has_mask=True)).values()) / GIB

    @property
    def advice(self) -> list[str]:
        """What makes the stage fit the memory of `plan.gpu`, in lines."""
        assert isinstance(self.setup, TrainingSetup)
        assert isinstance(self.shape, ModelShape)
        memory_gib, least_tokens = HARDWARE[self.config.plan.gpu].memory_gib, self.workload.longest_unit
        if self.is_scoring:
            return advise_scoring(self.shape, self.setup, memory_gib, least_tokens)
        return advise(self.shape, self.setup, memory_gib, least_tokens).lines

    def disk(self) -> tuple[int, int] | None:
        """Return the bytes that stay, and those that are removed: checkpoints and training states; None: unknown."""
        if isinstance(self.shape, str) or self.title == "confidence":
            return None if isinstance(self.shape, str) else (0, 0)
        adapted = None if self.model.lora is None else self.num_trained
        stays, checkpoints = saved_bytes(
            self.shape.num_parameters, adapted, self.model.dtype, max(1, self.num_checkpoints)
        )
        if self.config.reference.keep_checkpoints:
            stays, checkpoints = stays + checkpoints, 0
        return stays, checkpoints + states_bytes(self.num_trained, self.config.trainer.keep)


@dataclass(frozen=True)
class Speed:
    """Operations of the model's matrices in a second on all devices, and how they are known."""

    flops_per_second: float
    in_words: str
    is_measured: bool = False
    link: float | None = None  # Bytes per second that a GPU sends to the others; None: not a limit


def stage_needs(
    config: Config, plan: Plan, device: Device, data: CountedData, known: Callable[[Artifact], bool]
) -> list[StageNeeds]:
    """Return what the stages of a run need, in order.

    Args:
        data: The data of the run.
        known: Whether a stage was counted for another run. Such a stage is left out.
    """
    found = list[StageNeeds]()

    def add(title: str, artifact: Artifact, run: Config, workload: Workload, num_checkpoints: int = 0) -> None:
        content, where = model_config(run.model)
        setup = setup_of(run.trainer, device, run.model, workload)
        shape = shape_of(content)
        found.append(StageNeeds(title, artifact, run, device, shape, where, workload, setup, num_checkpoints))

    def training(title: str, artifact: Artifact, run: Config, num_checkpoints: int) -> None:
        if not known(artifact):
            if run.recipe.comparison == "matched_compute":
                tuned = run.reference.epochs or run.data.epochs
                epochs = tuned + run.reference.num_checkpoints + run.data.epochs  # as if a pass scored no other tokens
                if data.why_unknown is None:
                    epochs = matched_compute(run, data.encoded(run.model)).epochs
                run = with_epochs(run, epochs)
            examples = None if data.why_unknown is not None else target_examples(run, plan, data)
            add(title, artifact, run, training_workload(run, device, data, examples), num_checkpoints)

    reference, confidence = plan.reference, plan.confidence
    if plan.tunes_reference and reference is not None:
        training("reference", reference, reference_config(config), config.reference.num_checkpoints)
    if confidence is not None and not known(confidence):
        num_checkpoints, scoring = scored_checkpoints(config, plan), reference_config(config)
        add("confidence", confidence, scoring, scoring_workload(config, device, data, num_checkpoints))
    if config.averages_checkpoints:
        if not known(plan.target):
            add("average", plan.target, config, scoring_workload(config, device, data, 1, held_out=True))
    elif is_reference(config):
        training("ntp", plan.target, config, config.reference.num_checkpoints)
    else:
        training("target", plan.target, config, 1)
    return found


def counted_cost(config: Config, plan: Plan, data: CountedData) -> PipelineCost | None:
    """Return the cost of a run by the tokens of its data and the sizes of its models, as far as both are known."""
    models = config.model, config.model if plan.confidence is None else config.reference.model
    tokens, sizes = SAME, list[Sizes]()
    if data.why_unknown is None:
        own, other = map(data.encoded, models)
        tokens = TokensOfPass(int(own.train.lengths.sum()), int(other.train.lengths.sum()), scored_tokens(other))
    for model in models:
        shape = shape_of(model_config(model)[0])
        if isinstance(shape, str):
            return pipeline_cost(config, plan, tokens)
        whole = shape.num_parameters
        sizes.append(Sizes(whole, whole if model.lora is None else shape.lora_parameters(model.lora.r)))
    return pipeline_cost(config, plan, tokens, (sizes[0], sizes[1]))


def speed_of(config: Config, plan: Plan, device: Device, example: StageNeeds) -> Speed:
    """Return the speed that is assumed for a run: given, of the newest finished run on the same hardware, or assumed.

    Args:
        example: A training stage of the run.
    """
    planning, per_second = config.plan, config.plan.tokens_per_second
    if per_second is not None and not isinstance(example.shape, str):
        per_token = num_flops(example.shape.num_parameters, example.num_trained, 1)
        return Speed(per_second * per_token, f"plan.tokens_per_second={per_second:g}", is_measured=True)
    if (measured := _measured(config, plan, device)) is not None:
        return measured
    if device.accelerator == "cpu":
        cores = num_cores()
        link, peak, what = None, cores * PEAK_OF_A_CORE, f"of {cores} cores at {PEAK_OF_A_CORE / 1e9:.0f} GFLOP/s"
    else:
        hardware = HARDWARE[planning.gpu]
        link, peak = hardware.link, device.world_size * hardware.peak_flops
        what = f"of {hardware.peak_flops / 1e12:.0f} TFLOP/s"
    used = f"assumed: {planning.utilization:.0%} {what} (plan.utilization; no run on this hardware was found)"
    return Speed(peak * planning.utilization, used, link=link)


def _measured(config: Config, plan: Plan, device: Device) -> Speed | None:
    """Return the speed of the newest finished run of the same model on the same hardware under `root`."""
    from sftmix.provenance.metadata import hardware

    here = hardware(device) if device.accelerator == "cpu" else {}
    runs = sorted(find_artifacts(Path(config.root), "run")[0], key=lambda run: run.completed, reverse=True)
    for run in runs:
        try:
            record = read_json(run.folder / "run.json")
        except (OSError, InputError):
            continue
        if run.fields.get("model") != plan.target.fields["model"] or record.get("accelerator") != device.accelerator:
            continue
        machine, gpus = record.get("hardware", {}), record.get("hardware", {}).get("gpus", [])
        is_same = (
            (machine.get("cpu"), machine.get("cores")) == (here["cpu"], here["cores"])
            if device.accelerator == "cpu"
            else gpus and all(HARDWARE[config.plan.gpu].device_name in name for name in gpus)
        )
        if (
            is_same
            and record["cost"].get("trained_parameters")
            and record.get("devices") == device.world_size
            and record.get("seconds")
        ):
            rate = record["cost"]["flops"] / record["seconds"]
            return Speed(rate, f"measured in {run.folder.name}, its whole time", is_measured=True)
    return None
