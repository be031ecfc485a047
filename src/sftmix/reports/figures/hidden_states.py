"""The last hidden state of one token of each example, under the model of a run or any other model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf.errors import OmegaConfBaseException

from sftmix.artifacts.artifact import Artifact, making
from sftmix.artifacts.hashes import content_hash
from sftmix.artifacts.manifest import verify
from sftmix.config.model import Model
from sftmix.config.schema import Config, from_dict, to_dict
from sftmix.data.layout import cut_by_tokens, lay_out
from sftmix.distributed.device import count_gpus
from sftmix.errors import InputError, first_line
from sftmix.hub import looks_local
from sftmix.models.folder_check import check_folder
from sftmix.models.loading import load_causal_lm
from sftmix.provenance.runs import read_config
from sftmix.reports.figures.output import REPORTS
from sftmix.stages.context import RunContext
from sftmix.stages.fingerprint import MODEL_FILES, hash_cache
from sftmix.stages.inputs import check_data_files
from sftmix.stages.models import load_model
from sftmix.training.progress import progress_bar

PLACES = {
    "response": "the last token of the example, its end-of-turn token",
    "prompt": "the last token of the prompt",
}
FILE = "states.safetensors"


class HiddenStates(NamedTuple):
    """Hidden states of some examples."""

    states: NDArray[np.float32]  # `[example, dim]`
    known: NDArray[np.int64]  # Indices of the examples, among those that were asked for, that the model can read
    model: str  # Name of the model


def hidden_states(
    run: Path, ids: Sequence[str], at: str, model: Model | None, root: Path, *, show_progress: bool = True
) -> HiddenStates:
    """Return the last hidden state of a token of each example, as the model of a run or another model computes it.

    The examples are rendered and tokenized as in the run, by the tokenizer of the model. States are kept in
    `root/reports` and not computed again for the same weights and tokens.

    Args:
        run: Folder of a run or of scores.
        at: A key of `PLACES`.
        model: The model. If None, the tuned model of the run or, of a folder of scores, the reference before tuning.

    Raises:
        InputError: If the data or the model of the run is gone, or the model can read none of the examples.
    """
    config = _config_of(run)
    config.trainer.progress_bar = show_progress
    model = _own_model(run, config) if model is None else model
    if model.path is not None and looks_local(model.path):
        check_folder(model.path, "model.path")
    check_data_files(config.data)
    encoded = RunContext(config).encoded(model)
    everything = encoded.train.joined(encoded.val)
    index = {example_id: k for k, example_id in enumerate(everything.ids)}
    known = [k for k, example_id in enumerate(ids) if example_id in index]
    if not known:
        raise InputError(f"{run}: none of its examples is among the data that {model.title} can read")
    examples = [everything[index[ids[k]]] for k in known]
    sequences = [e.input_ids if at == "response" else e.input_ids[: e.num_prompt_tokens] for e in examples]
    fields = {"kind": "states", "model": _identity(model, config), "tokens": _hash(sequences), "at": at}
    artifact = Artifact(root / REPORTS, f"states-{model.title}-{at}", fields)
    with making(artifact) as folder:
        if folder is not None:
            from safetensors.numpy import save_file

            pad = encoded.tokenizer.pad_token_id
            states = _compute(model, sequences, pad, config.confidence.batch_tokens, show_progress=show_progress)
            save_file({"states": states}, folder / FILE)
    verify(artifact.folder)
    from safetensors.numpy import load_file

    return HiddenStates(load_file(artifact.folder / FILE)["states"], np.array(known), model.title)


def _config_of(run: Path) -> Config:
    """Return the config of a run, whose folder may have moved with its neighbors."""
    try:
        config = from_dict(dict(read_config(run)))
    except (OmegaConfBaseException, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{run / 'run.json'}: not the config of this version ({first_line(error)})") from None
    config.root = str(run.parent)
    return config


def _own_model(run: Path, config: Config) -> Model:
    folder = run / "model"
    if not folder.is_dir():
        return config.reference.model
    verify(run, "model")
    return Model(
        name=run.name,
        path=str(folder),
        revision=None,
        dtype="float32",
        pad_token=None,
        lr=config.model.lr,
        init=None,
        lora=None,
        quantization=None,
    )


def _identity(model: Model, config: Config) -> Any:
    """Return what the weights of a model depend on, and their type."""
    if model.init is not None:
        weights: Any = to_dict(model.init)
    elif looks_local(str(model.path)):
        weights = content_hash(Path(str(model.path)), hash_cache(config), MODEL_FILES)
    else:
        weights = [model.path, model.revision]
    return {"weights": weights, "dtype": _dtype()}


def _dtype() -> str:
    return "bfloat16" if count_gpus() else "float32"


def _hash(sequences: Sequence[Sequence[int]]) -> str:
    text = "\n".join(",".join(map(str, ids)) for ids in sequences)
    return hashlib.sha256(text.encode()).hexdigest()


def _compute(
    model: Model, sequences: Sequence[Sequence[int]], pad_token_id: int, batch_tokens: int, *, show_progress: bool
) -> NDArray[np.float32]:
    """Return the last hidden state of the last token of each sequence. The head is not run."""
    import torch

    from sftmix.models.language_model import SFTMixLM

    device = torch.device("cuda" if count_gpus() else "cpu")
    if model.init is None:
        causal_lm = load_causal_lm(str(model.path), model.revision, dtype=_dtype(), device=device.type)
    else:
        causal_lm = load_model(model).to(device)
    lm = SFTMixLM(causal_lm.eval())
    found: dict[int, Any] = {}
    bar = progress_bar(len(sequences), f"hidden states of {model.title}", "example", hide=not show_progress)
    with bar, torch.no_grad():
        for batch in cut_by_tokens([len(ids) for ids in sequences], batch_tokens):
            inputs, starts = lay_out([sequences[k] for k in batch], "padded", pad_token_id)
            last = torch.tensor([start + len(sequences[k]) - 1 for k, start in zip(batch, starts, strict=True)])
            states = lm.hidden([(inputs[0].input_ids.to(device), None)], last.to(device)).float().cpu().numpy()
            found |= dict(zip(batch, states, strict=True))
            bar.update(len(batch))
    return np.stack([found[k] for k in range(len(sequences))])
