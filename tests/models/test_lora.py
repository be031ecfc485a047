"""LoRA: what is trained and what is not, folders that plain PEFT reads, merging, and what is refused."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from builders import SMALL_CONFIG
from sftmix.data.collate import MicroBatch
from sftmix.data.layout import BodyInput
from sftmix.errors import InputError
from sftmix.functional.equations import LossSettings
from sftmix.models import export as export_module
from sftmix.models.export import export
from sftmix.models.folder_check import check_checkpoint, check_folder
from sftmix.models.language_model import SFTMixLM
from sftmix.models.loading import load_causal_lm
from sftmix.models.lora import (
    Base,
    adapters_in_words,
    add_lora,
    exact_in_bfloat16,
    hold_in_bfloat16,
    load_adapter,
    merge,
    save_adapter,
)
from sftmix.models.tokenizer import load_tokenizer
from sftmix.training.optim import OptimizerSettings, adamw

pytestmark = pytest.mark.filterwarnings("ignore:.*`is_gradient_checkpointing` is deprecated.*:FutureWarning")  # PEFT's
SMALL = SMALL_CONFIG | {"vocab_size": 400}
FAMILIES = {
    "llama, tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama, untied": LlamaConfig(**SMALL),
    "qwen-2, with biases": Qwen2Config(**SMALL),
    "gemma-2, soft cap": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=1.5, attn_implementation="eager"),
    "gpt-2, transposed weights": GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4),
}
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", "seed": 3, "base": Base("/base", None)}
IDS = torch.tensor([[5, 9, 2, 7, 7, 1, 30, 300]])


def model(family="llama, tied"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(FAMILIES[family], dtype=torch.float32).eval()


def adapted(family="llama, tied", **changes):
    return add_lora(model(family), **{**LORA, **changes})


def move(causal_lm):
    """Give the adapters something to say: their second factor begins at zero."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in causal_lm.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.1
    return causal_lm


def logits(causal_lm):
    with torch.no_grad():
        return causal_lm.eval()(input_ids=IDS).logits


@pytest.fixture
def folders(tiny_tokenizer, tmp_path):
    """A base folder, and the folder of an adapter of it."""
    tiny_tokenizer.chat_template = "{{ messages }}{{ eos_token }}"
    export(model(), tiny_tokenizer, tmp_path / "base", "float32", 1)
    save_adapter(move(adapted(base=Base(str(tmp_path / "base"), None))), tiny_tokenizer, tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


def test_untrained_adapters_change_nothing_and_leave_the_head_out():
    causal_lm = adapted()
    assert torch.equal(logits(causal_lm), logits(model()))
    names = {name.rsplit(".", 1)[-1] for name, m in causal_lm.named_modules() if hasattr(m, "lora_A")}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    trained = {name for name, p in causal_lm.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in causal_lm.named_parameters() if ".lora_" in name}
    assert {p.dtype for p in causal_lm.parameters() if p.requires_grad} == {torch.float32}
    assert adapted(target_modules=["q_proj"]).model.layers[0].mlp.up_proj.__class__ is torch.nn.Linear


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


def test_a_layer_by_hand():
    """W x + (alpha / r) B A x."""
    causal_lm = move(adapted())
    layer = causal_lm.model.layers[0].mlp.up_proj
    x = torch.randn(3, 32)
    a, b, w = (layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight)
    assert a.shape == (4, 32)
    torch.testing.assert_close(layer(x), x @ w.T + 2.0 * (x @ a.T @ b.T))


def test_the_same_seed_gives_the_same_adapters_and_the_global_generator_stays():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = adapted()
    assert torch.equal(torch.rand(3), expected), "the global generator is where it was"
    again, other = adapted(), adapted(seed=4)
    weights = [{n: p for n, p in m.named_parameters() if "lora_A" in n} for m in (first, again, other)]
    assert all(torch.equal(p, weights[1][name]) for name, p in weights[0].items())
    assert not any(torch.equal(p, weights[2][name]) for name, p in weights[0].items())


def micro_batch(lm, *, mu=0.4, dtype=torch.float64):
    """Two responses of three and two tokens that meet over two."""
    ids = torch.tensor([[5, 9, 2, 7, 7], [3, 8, 30, 300, 11]])
    rows, labels = torch.tensor([1, 2, 6, 7, 3]), torch.tensor([2, 7, 30, 300, 7])
    lam = torch.tensor([0.7, 0.7], dtype=dtype)
    weights = torch.ones(5, dtype=dtype)
    batch = MicroBatch((BodyInput(ids, None),), rows, labels, weights, torch.tensor([0, 0, 1, 1, 0]), lam, 2)
    loss = lm(batch, LossSettings(mu=mu), num_tokens=5, num_mixed=2)
    return loss.loss, ids, rows, labels, lam


def test_the_frozen_weights_get_no_gradient_and_stay_the_same_bits():
    lm = SFTMixLM(adapted(dropout=0.1))
    before = {name: p.detach().clone() for name, p in lm.named_parameters()}
    optimizer = adamw(lm, OptimizerSettings(lr=0.1))
    for _ in range(3):
        optimizer.zero_grad()
        micro_batch(lm.train(), dtype=torch.float32)[0].backward()
        optimizer.step()
    for name, p in lm.named_parameters():
        if ".lora_" in name:
            assert not torch.equal(p, before[name]), name
        else:
            assert p.grad is None, name
            assert torch.equal(p, before[name]), name


@pytest.mark.parametrize("family", ["llama, tied", "llama, untied"])
def test_the_gradients_of_adapters_are_those_of_the_dense_equations(family):
    """The paper's formulas over one-hot labels, in float64; the frozen head gets no dW."""
    lm = SFTMixLM(move(adapted(family)).double())
    loss, ids, rows, labels, lam = micro_batch(lm)
    loss.backward()
    assert lm.causal_lm.lm_head.weight.grad is None
    fused = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    states = lm.causal_lm.model(input_ids=ids).last_hidden_state.flatten(0, 1)[rows]
    onehot, head = F.one_hot(labels, 400).double(), lm.causal_lm.lm_head.weight.T
    z = lam[:, None] * states[:2] + (1 - lam[:, None]) * states[2:4]
    y = lam[:, None] * onehot[:2] + (1 - lam[:, None]) * onehot[2:4]
    ntp, mixup = (-(t * torch.log_softmax(h @ head, -1)).sum() for h, t in ((states, onehot), (z, y)))
    dense = (ntp + 0.4 * mixup) / 5
    dense.backward()
    assert loss.item() == pytest.approx(dense.item(), rel=1e-12)
    assert fused
    for name, p in lm.named_parameters():
        if p.requires_grad:
            assert fused[name].abs().max() > 1e-6, "a gradient that is nothing would agree with anything"
            torch.testing.assert_close(fused[name], p.grad, rtol=1e-9, atol=1e-12)


def test_a_frozen_head_spares_a_matmul(products_counter):
    def products(causal_lm):
        lm = SFTMixLM(causal_lm)
        with torch.no_grad():
            states = lm.hidden([(IDS, None)], torch.arange(8))
        states.requires_grad_()
        lm.hidden = lambda *_: states
        with products_counter() as counter:
            positions = torch.arange(8)
            batch = MicroBatch((), positions, positions, torch.ones(8), positions, torch.ones(2), 8)
            lm(batch, LossSettings(mu=1.0), num_tokens=8, num_mixed=2).loss.backward()
        return counter.count

    assert (products(model()), products(adapted())) == (3, 2)


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
    """Under sharded training the parameters of the model in memory are no whole ones."""
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


def test_a_run_that_diverged_is_told(folders, tiny_tokenizer, tmp_path):
    diverged = move(adapted())
    diverged.model.layers[0].mlp.up_proj.lora_B["default"].weight.data.fill_(float("nan"))
    save_adapter(diverged, tiny_tokenizer, tmp_path / "nan")
    with pytest.raises(InputError, match="not finite: the run has diverged"):
        merge(model(), tmp_path / "nan")


def test_frozen_weights_in_bfloat16_are_the_same_to_autocast():
    rounded = model()
    for p in rounded.parameters():
        p.data = p.data.bfloat16().float()
    apart = move(add_lora(rounded, **LORA))
    up = apart.model.layers[0].mlp.up_proj.base_layer.weight
    up.data[0, 0] = 1 + 2**-20
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(apart)
    hold_in_bfloat16(apart, exact_in_bfloat16(apart))
    assert apart.model.layers[0].self_attn.q_proj.base_layer.weight.dtype == torch.bfloat16
    assert up.dtype == torch.float32, "bfloat16 would lose a part of it"
    assert apart.lm_head.weight.dtype == torch.float32
    assert {p.dtype for p in apart.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(apart), expected)


def test_a_model_without_adapters_is_not_held_in_bfloat16():
    whole = model()
    assert exact_in_bfloat16(whole) == []
    hold_in_bfloat16(whole, exact_in_bfloat16(whole))
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["q_proj", "lm_head"], "lm_head is the head, which takes no adapter"),
        (
            ["q_prj"],
            "q_prj is not a linear layer of model family llama, which has q_proj, k_proj, v_proj, o_proj, gate",
        ),
        (["embed_tokens"], "embed_tokens is not a linear layer"),
        (["self_attn"], "self_attn is not a linear layer"),
    ],
)
def test_names_that_take_no_adapter_are_refused(targets, says):
    with pytest.raises(InputError, match=says) as error:
        adapted(target_modules=targets)
    assert "\n" not in str(error.value)


def test_a_family_that_peft_refuses_is_told_in_one_line():
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    with pytest.raises(InputError, match=r"model\.lora: model family mamba cannot") as error:
        add_lora(AutoModelForCausalLM.from_config(config), **LORA)
    assert "\n" not in str(error.value)


EXPERTS = {
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, head_dim=8, num_experts=4, moe_intermediate_size=16, num_experts_per_tok=2),
}


@pytest.mark.parametrize("family", EXPERTS)
def test_dropout_on_adapters_of_experts_is_refused_with_the_cure_which_works(family, tiny_tokenizer, tmp_path):
    def base():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(EXPERTS[family], dtype=torch.float32).eval()

    with pytest.raises(InputError, match=rf"model\.lora\.dropout=0\.1: model family {family} has .* set .*dropout=0$"):
        add_lora(base(), **{**LORA, "dropout": 0.1})
    apart = move(add_lora(base(), **LORA))
    assert "adapters on 14 of " in adapters_in_words(apart), "experts of two layers too, as two weights a layer"
    save_adapter(apart, tiny_tokenizer, tmp_path)
    merged = merge(base(), tmp_path)
    assert not torch.allclose(logits(merged), logits(base()), atol=1e-3)
    torch.testing.assert_close(logits(merged), logits(apart), rtol=1e-4, atol=1e-5)


def test_what_carries_adapters_is_counted_by_hand():
    """Llama, tied: 400 x 32 embeddings; a layer has 2 x 32 x 32 + 2 x 16 x 32 of attention and 3 x 32 x 48."""
    frozen = 400 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48) + 5 * 32
    trained = 2 * 4 * (2 * 64 + 2 * 48 + 3 * 80)
    total = frozen + trained
    assert adapters_in_words(adapted()) == (
        f"adapters on 14 of 20 weights, {trained / total:.2%} of the parameters trained; without adapters: "
        f"model.embed_tokens.weight ({12800 / total:.1%}), 5 biases and norms"
    )


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (
            GptOssConfig(**SMALL, head_dim=8, num_local_experts=4),
            (
                "model.layers.*.mlp.experts.gate_up_proj (",
                "model.layers.*.mlp.experts.down_proj (",
                "mlp.router.weight (",
            ),
        ),
        (
            GraniteMoeConfig(**SMALL, num_local_experts=4),
            ("model.layers.*.block_sparse_moe.experts.gate_up_proj (", "block_sparse_moe.experts.down_proj ("),
        ),
    ],
    ids=["gpt-oss", "granite-moe"],
)
def test_experts_without_adapters_are_named(config, names):
    words = adapters_in_words(add_lora(AutoModelForCausalLM.from_config(config), **LORA))
    assert words.startswith("adapters on 8 of ")
    assert all(name in words.partition("without adapters: ")[2] for name in names)
    some = adapters_in_words(adapted(target_modules=["q_proj"]))
    assert "model.layers.*.self_attn.k_proj.weight (" in some
    assert "model.layers.*.self_attn.q_proj" not in some


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
        ({n: t for n, t in tensors.items() if n != name}, r"does not fit its base, weights are 1 missing \(.*up_proj"),
        ({**tensors, other: nan}, r"weights are 1 unexpected \(.*layers\.2\.mlp\.up_proj"),
        ({f"module.{n}": t for n, t in tensors.items()}, r"weights are 28 missing \(.*\) and 28 unexpected \("),
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
