"""What a stage is run with: its spec, the context that all stages of a run share, and the process that runs it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftmix.config.model import Model
from sftmix.config.schema import Config, to_dict
from sftmix.data.encoding import Encoder
from sftmix.data.vocabulary import check_examples, check_template
from sftmix.distributed.device import Device
from sftmix.distributed.ranks import SINGLE, Ranks
from sftmix.distributed.stopping import StopRequest
from sftmix.errors import InputError, explain_os_error
from sftmix.models.loading import num_embeddings
from sftmix.stages.data import DataSet, EncodedData
from sftmix.stages.models import check_model, load_model_tokenizer
from sftmix.stages.validation_files import ValidationFile, read_validation_files

if TYPE_CHECKING:
    import torch


class StageSpec(NamedTuple):
    """What a stage computes, and where."""

    stage: str  # reference, ntp (the target is an NTP run), confidence, target, average or certify
    folder: Path  # Folder that the stage writes into
    fields: Mapping[str, Any]  # Everything that the content of the folder depends on
    inputs: tuple[Path, ...] = ()  # Paths that the stage reads

    def as_dict(self) -> dict[str, Any]:
        """Return the spec as JSON can hold it, for the processes of a stage."""
        return {**self._asdict(), "folder": str(self.folder), "inputs": [str(path) for path in self.inputs]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "StageSpec":
        """Return the spec that `as_dict` has written."""
        inputs = tuple(map(Path, content["inputs"]))
        return cls(content["stage"], Path(content["folder"]), content["fields"], inputs)


class RankContext(NamedTuple):
    """One process of a stage."""

    device: Device  # Devices of the run
    ranks: Ranks = SINGLE  # Rank of this process among the processes of the stage
    stop: StopRequest = StopRequest()  # Whether this process was asked to stop

    @property
    def torch_device(self) -> "torch.device":
        """The device of this process."""
        import torch

        return torch.device("cuda", self.ranks.local_rank) if self.device.accelerator == "gpu" else torch.device("cpu")


class RunContext:
    """What all stages of a run share: its config, its data and its tokenizers, each loaded once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.data = DataSet(config, lambda: self.tokenizer(config.model))
        self._tokenizers: dict[str, Any] = {}
        self._validation_files: dict[str, ValidationFile] | None = None

    def encoded(self, model: Model) -> EncodedData:
        """Return the data under the tokenizer of a model. Refuse data of which a token has no embedding."""
        encoded = self.data.encode(self.tokenizer(model))
        if model.path is not None:
            size = num_embeddings(model.path, model.revision)
            check_examples(encoded.train, encoded.tokenizer, size, f"model {model.path}")
        return encoded

    def validation_files(self) -> dict[str, ValidationFile]:
        """Return the files of `data.val_path` by name, as the target's tokenizer sees them."""
        if self._validation_files is None:
            model, train = self.config.model, self.encoded(self.config.model).train
            size = None if model.path is None else num_embeddings(model.path, model.revision)
            self._validation_files = read_validation_files(self.config, self.tokenizer(model), size, train)
        return self._validation_files

    def tokenizer(self, model: Model) -> Any:
        """Return the tokenizer of a model, with the chat template of the run. Model and tokenizer are checked."""
        key = json.dumps(to_dict(model))
        if key not in self._tokenizers:
            data = self.config.data
            check_model(model, data.max_seq_len)
            tokenizer = load_model_tokenizer(model)
            self.data.use_template(tokenizer)
            if model.path is not None:
                encoder = Encoder(tokenizer, data.max_seq_len, data.overlong)
                size = num_embeddings(model.path, model.revision)
                check_template(encoder, encoder.end_token_id, size, f"model {model.path}")
            self._tokenizers[key] = tokenizer
        return self._tokenizers[key]


def run_stage(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    """Run a stage in this process, or the share of this rank. An error of a file becomes an InputError."""
    from safetensors import SafetensorError

    try:
        _write(spec, context, rank)
    except BrokenPipeError:  # the standard output is closed (`| head`), and the program ends without a message
        raise
    except OSError as error:
        raise InputError(explain_os_error(error)) from error
    except SafetensorError as error:
        raise InputError(f"{spec.folder}: {' '.join(str(error).split())}; run the same command again") from error


def _write(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    """Call the function of a stage. Stages import torch, so each is imported when it runs."""
    if spec.stage == "confidence":
        from sftmix.stages.confidence import write_confidence

        write_confidence(spec, context, rank)
    elif spec.stage == "certify":
        from sftmix.stages.invariance.gradients import write_gradients

        write_gradients(spec, context, rank)
    elif spec.stage == "average":
        from sftmix.stages.average import write_average

        write_average(spec, context, rank)
    elif spec.stage == "target":
        from sftmix.stages.target import write_target

        write_target(spec, context, rank)
    else:
        from sftmix.stages.plan import reference_config
        from sftmix.stages.reference import write_ntp

        config = reference_config(context.config) if spec.stage == "reference" else context.config
        write_ntp(spec, config, context, rank)
