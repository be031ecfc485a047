"""The mean of the weights of checkpoints, beside torch's own average of models."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from builders import odd_llama
from sftmix.errors import InputError
from sftmix.models.average import write_mean
from sftmix.models.loading import load_causal_lm


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def checkpoints(request, tmp_path):
    """Three models of different weights, as folders and as AveragedModel averages them."""
    folders, average = [], None
    for number in range(3):
        model = odd_llama(tied=request.param)
        generator = torch.Generator().manual_seed(number)
        for weight in model.parameters():
            weight.data += torch.randn(weight.shape, generator=generator)
        folder = tmp_path / f"step-{number}"
        model.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(str(number))
        folders.append(folder)
        average = AveragedModel(model) if average is None else average
        average.update_parameters(model)
    return folders, average.module


def test_the_mean_is_what_torch_averages_and_tied_weights_stay_tied(checkpoints, tmp_path):
    folders, expected = checkpoints
    write_mean(folders, tmp_path / "mean")
    mean = load_causal_lm(str(tmp_path / "mean"), None)
    weights = dict(expected.named_parameters())
    assert dict(mean.named_parameters()).keys() == weights.keys()
    for name, weight in mean.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-6, atol=1e-7)
    is_tied = mean.config.tie_word_embeddings
    assert (mean.lm_head.weight is mean.get_input_embeddings().weight) is is_tied
    assert (tmp_path / "mean" / "tokenizer.json").read_text() == "2", "the files beside the weights are the last ones"


def test_a_mean_of_one_checkpoint_has_its_bits(checkpoints, tmp_path):
    folders, _ = checkpoints
    write_mean(folders[-1:], tmp_path / "mean")
    written, own = (load_file(folder / "model.safetensors") for folder in (tmp_path / "mean", folders[-1]))
    assert all(torch.equal(written[name], own[name]) for name in own.keys() | written.keys())


def test_half_precision_is_added_up_in_float64(checkpoints, tmp_path):
    """In bfloat16, 256 + 1 + 1 is 256."""
    folders, _ = checkpoints
    for folder, value in zip(folders, (256.0, 1.0, 1.0), strict=True):
        weights = {name: torch.full_like(w, value).bfloat16() for name, w in load_file(folder / WEIGHTS).items()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_mean(folders, tmp_path / "mean")
    for weight in load_file(tmp_path / "mean" / WEIGHTS).values():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, torch.full_like(weight, 258 / 3))


WEIGHTS = "model.safetensors"


def test_checkpoints_that_have_no_mean_are_refused(checkpoints, tmp_path):
    folders, _ = checkpoints
    weights = load_file(folders[0] / WEIGHTS)
    name = sorted(weights)[0]
    save_file({k: w for k, w in weights.items() if k != name}, folders[0] / WEIGHTS)
    with pytest.raises(InputError, match=rf"step-0: weight {name} is missing, expected .* as in .*step-2"):
        write_mean(folders, tmp_path / "mean")
    save_file({**weights, name: weights[name].bfloat16()}, folders[0] / WEIGHTS)
    with pytest.raises(InputError, match=rf'step-0: weight {name} is \["BF16", .*expected \["F32"'):
        write_mean(folders, tmp_path / "mean")
    (folders[1] / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="step-1: an adapter, expected all weights of a model"):
        write_mean(folders, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
