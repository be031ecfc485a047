"""Folders of adapters: saving, merging into the base model, and adapters that are refused."""

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
)

from adapters import FAMILIES, LORA, SMALL, adapted, logits, model, move
from sftmix.errors import InputError
from sftmix.models import export as export_module
from sftmix.models.export import export
from sftmix.models.folder_check import check_checkpoint, check_folder
from sftmix.models.loading import load_causal_lm
from sftmix.models.lora import (
    Base,
    add_lora,
    load_adapter,
    merge,
    save_adapter,
)
from sftmix.models.tokenizer import load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*`is_gradient_checkpointing` is deprecated.*:FutureWarning")  # PEFT's


@pytest.fixture
def folders(tiny_tokenizer, tmp_path):
    """A base folder, and the folder of an adapter of it."""
    tiny_tokenizer.chat_template = "{{ messages }}{{ eos_token }}"
    export(model(), tiny_tokenizer, tmp_path / "base", "float32", 1)
    save_adapter(move(adapted(base=Base(str(tmp_path / "base"), None))), tiny_tokenizer, tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


def test_a_model_without_weights_takes_the_same_adapters(folders, tmp_path):
    """What all ranks but the first build: the same names, shapes and kinds, and nothing in memory."""
    with torch.device("meta"):
        shells = [AutoModelForCausalLM.from_config(FAMILIES["llama, tied"], dtype=torch.float32) for _ in range(2)]
    whole = load_adapter(model(), folders[1])
    for shell, expected in (
        (add_lora(shells[0], **LORA), adapted()),
        (load_adapter(shells[1], folders[1], weights=False), whole),
    ):
        named, wanted = (dict(m.named_parameters()) for m in (shell, expected))
        assert list(named) == list(wanted)
        for name, p in named.items():
            assert (p.shape, p.dtype, p.requires_grad) == (
                wanted[name].shape,
                wanted[name].dtype,
                wanted[name].requires_grad,
            )
            assert p.device.type == "meta", name


def test_a_saved_adapter_is_read_by_plain_peft(folders):
    base, folder = folders
    expected = logits(move(adapted()))
    by_hand = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    assert torch.equal(logits(by_hand), expected)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(folder)), expected), "it names its base"
    assert torch.equal(logits(load_adapter(load_causal_lm(str(base), None), folder)), expected)
    files = {f.name for f in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    tensors = load_file(folder / "adapter_model.safetensors")
    own = get_peft_model_state_dict(by_hand)
    assert set(tensors) == set(own)
    assert all(t.dtype == torch.float32 and torch.equal(t, own[name]) for name, t in tensors.items())


def test_the_base_of_a_hub_id_is_named_with_its_commit(tiny_tokenizer, tmp_path):
    save_adapter(adapted(base=Base("org/name", "a" * 40)), tiny_tokenizer, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/name", "a" * 40)
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 8, "CAUSAL_LM")
    assert config["target_modules"] == sorted(config["target_modules"])


def test_a_state_that_was_gathered_is_what_is_saved(folders, tiny_tokenizer, tmp_path):
    """Under sharded training, the parameters of the model in memory are not whole."""
    gathered = {name: t.bfloat16().float() for name, t in move(adapted()).state_dict().items() if ".lora_" in name}
    save_adapter(adapted(), tiny_tokenizer, tmp_path / "again", gathered)
    tensors = load_file(tmp_path / "again" / "adapter_model.safetensors")
    expected = load_file(folders[1] / "adapter_model.safetensors")
    assert set(tensors) == set(expected)
    assert all(torch.equal(t, expected[name].bfloat16().float()) for name, t in tensors.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_give_the_logits_of_base_and_adapter_apart(family, tiny_tokenizer, tmp_path):
    apart = move(adapted(family))
    save_adapter(apart, tiny_tokenizer, tmp_path)
    merged = merge(model(family), tmp_path)
    assert not torch.allclose(logits(merged), logits(model(family)), atol=1e-3), "the adapter does something"
    torch.testing.assert_close(logits(merged), logits(apart), rtol=1e-4, atol=1e-5)
    assert set(merged.state_dict()) == set(model(family).state_dict())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_folder_is_an_ordinary_one(folders, tiny_tokenizer, tmp_path, dtype):
    export(merge(model(), folders[1]), tiny_tokenizer, tmp_path / "out", dtype, 1)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    kind = export_module.DTYPES[dtype]
    expected = merge(model(), folders[1]).state_dict()
    assert back.dtype == kind
    assert all(torch.equal(tensor, expected[name].to(kind)) for name, tensor in back.state_dict().items())
    check_folder(str(tmp_path / "out"), "model.path")


def test_merging_that_changes_the_logits_is_a_warning(folders, monkeypatch, capsys):
    """A finished run is not lost; its adapter is still right."""
    merge(model(), folders[1])
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda _: model(), raising=False)
    merge(model(), folders[1])
    assert "adapter, merged into its base: its logits differ by" in capsys.readouterr().out


def test_a_run_that_diverged_is_refused(folders, tiny_tokenizer, tmp_path):
    diverged = move(adapted())
    diverged.model.layers[0].mlp.up_proj.lora_B["default"].weight.data.fill_(float("nan"))
    save_adapter(diverged, tiny_tokenizer, tmp_path / "nan")
    with pytest.raises(InputError, match="not finite: the run has diverged"):
        merge(model(), tmp_path / "nan")


def change(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda b, a: shutil.rmtree(b), "an adapter without its base, there is no folder .*base"),
        (lambda b, a: change(a, base_model_name_or_path=None), "an adapter without its base, .* names none"),
        (lambda b, a: change(a, base_model_name_or_path=str(a)), r"its base=.*: an adapter \(adapter_config"),
        (lambda b, a: (b / "config.json").unlink(), "its base=.*: no config.json in it"),
        (lambda b, a: change(a, peft_type="IA3"), "an adapter of kind IA3, expected LORA"),
        (lambda b, a: change(a, target_modules=["q_proj", "lm_head"]), "an adapter of the head too"),
        (lambda b, a: (a / "adapter_config.json").write_text("{"), "adapter_config.json in it cannot be read"),
        (lambda b, a: (a / "adapter_config.json").write_text("[]"), "adapter_config.json in it cannot be read"),
        (lambda b, a: (a / "adapter_model.safetensors").rename(a / "adapter_model.bin"), "no weights in it"),
        (lambda b, a: (a / "adapter_model.safetensors").write_bytes(b"torn"), "is not a safetensors file"),
    ],
)
def test_an_adapter_that_cannot_be_read_is_refused(folders, break_it, says):
    base, folder = folders
    check_checkpoint(str(folder), "confidence.checkpoints")
    break_it(base, folder)
    with pytest.raises(InputError, match=says) as error:
        check_checkpoint(str(folder), "confidence.checkpoints")
    assert str(error.value).startswith("confidence.checkpoints")
    assert "\n" not in str(error.value)


def test_an_adapter_is_no_model(folders):
    with pytest.raises(InputError, match=r"model\.path=.*: an adapter .*expected a whole model: merge it first"):
        check_folder(str(folders[1]), "model.path")


def test_an_adapter_of_another_base_is_refused(folders):
    with pytest.raises(InputError, match="does not fit its base") as error:
        load_adapter(AutoModelForCausalLM.from_config(LlamaConfig(**{**SMALL, "hidden_size": 16})), folders[1])
    assert "\n" not in str(error.value)
    weights = folders[1] / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    other = name.replace("layers.1", "layers.2")
    nan = torch.full_like(tensors[name], float("nan"))
    for changed, says in (
        ({n: t for n, t in tensors.items() if n != name}, r"does not fit its base, 1 weight is missing \(.*up_proj"),
        ({**tensors, other: nan}, r"1 weight is unexpected \(.*layers\.2\.mlp\.up_proj"),
        ({f"module.{n}": t for n, t in tensors.items()}, r"28 weights are missing \(.*\) and 28 weights are unex"),
        ({**tensors, name: tensors[name][:, :2].clone()}, "does not fit its base .*size mismatch"),
        ({**tensors, name: nan}, r"adapter .*: 192 of the 192 values of weight .*up_proj\.lora_B\..* are not finite"),
    ):
        save_file(changed, weights)
        with pytest.raises(InputError, match=says) as error:
            load_adapter(model(), folders[1])
        assert "\n" not in str(error.value)
    weights.unlink()
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors in it"):
        load_adapter(model(), folders[1])


def test_an_adapter_of_the_head_is_refused_whatever_its_config_says(tmp_path, tiny_tokenizer):
    from peft import LoraConfig, get_peft_model

    own = get_peft_model(
        model("llama, untied"), LoraConfig(task_type="CAUSAL_LM", target_modules=r".*(q_proj|lm_head)")
    )
    own.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(InputError, match="it adapts the head too"):
        load_adapter(model("llama, untied"), tmp_path)


def test_a_real_model_with_adapters(shared, tmp_path):
    folder = str(shared / "models/stories260K")
    tokenizer = load_tokenizer(folder, None, None)
    apart = move(add_lora(load_causal_lm(folder, None), **{**LORA, "base": Base(folder, None)}))
    save_adapter(apart, tokenizer, tmp_path / "adapter")
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), logits(apart))
    export(merge(load_causal_lm(folder, None), tmp_path / "adapter"), tokenizer, tmp_path / "model", "float32", 1)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(merged), logits(apart), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(merged), logits(load_causal_lm(folder, None)), atol=0.01)
