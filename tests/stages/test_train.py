"""A run on a model folder: what is found before training, what is written first, and what is printed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from sftmix.artifacts.manifest import read_json
from sftmix.errors import InputError
from sftmix.functional.equations import FORMS, TOKEN_WEIGHTS, LossSettings
from sftmix.models.export import export
from sftmix.models.tiny import tiny_llama
from sftmix.stages import confidence, reference
from sftmix.stages import train as tuning
from sftmix.stages.context import RunContext
from sftmix.stages.pipeline import run_pipeline
from sftmix.stages.split import split_examples
from sftmix.stages.target import training_examples

SHAPE = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 256, "seed": 5}


def test_the_terms_of_the_config_reach_the_loss(compose):
    def loss(*overrides):
        config = compose(*overrides)
        return tuning.loss_settings(config.recipe, config.trainer)

    assert loss("recipe=ntp") == LossSettings(mu=None)
    assert loss() == LossSettings(mu=0.2)
    recorded = LossSettings(mu=None, dro_temperature=1.0, dro_losses="previous_epoch")
    assert loss("recipe=ir_dro", "recipe.ntp.dro_losses=previous_epoch") == recorded
    assert loss("recipe=ir_dro") == LossSettings(mu=None, dro_temperature=1.0)
    terms = ("ntp.label_smoothing=0.1", "ntp.token_weight=eaft", "ntp.token_weight_power=2", "mixup.form=labels")
    expected = LossSettings(
        mu=0.2, form="labels", label_smoothing=0.1, token_weight="eaft", token_weight_power=2.0, implementation="dense"
    )
    assert loss("trainer.loss=dense", *(f"recipe.{term}" for term in terms)) == expected
    for name in TOKEN_WEIGHTS:
        assert loss(f"recipe.ntp.token_weight={name}").token_weight == name
    for form in FORMS:
        assert loss(f"recipe.mixup.form={form}").form == form


def test_weights_of_the_data_reach_next_token_prediction_as_factors(compose, tmp_path):
    """Of the recipe's weight and of the subset that NTP learns from."""
    rows = [{"instruction": f"Say {k}.", "output": f"{k}", "w": 0.5 + k} for k in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = compose(
        "data=own",
        f"data.path={tmp_path / 'rows.jsonl'}",
        "data.columns={weight: w}",
        "data.val_fraction=0",
        "model=tiny",
        "model.init.vocab_size=400",
        "recipe.ntp.weight=2",
        "recipe.ntp.on=confident",
        "split.by=random",
        "trainer.progress_bar=false",
        f"root={tmp_path}",
    )
    context = RunContext(config)
    train = context.encoded(config.model).train
    row_of = [context.data.examples[int(line)].row for line in train.lines]
    assert train.weights.tolist() == [row - 0.5 for row in row_of]
    assert tuning.ntp_weights(config, train) == [2 * (row - 0.5) for row in row_of]
    found = training_examples(config, train, split_examples(context, None))
    expected = [2 * (row - 0.5) * bool(c) for row, c in zip(row_of, found.is_confident, strict=True)]
    assert found.weights == expected
    assert 0 < sum(weight > 0 for weight in expected) < 12


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model folder."""
    from builders import new_tiny_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("base") / "base", new_tiny_tokenizer()
    tokenizer.chat_template = "{{ eos_token }}"
    export(tiny_llama(tokenizer, **SHAPE), tokenizer, folder, "float32", 1)
    return folder


@pytest.fixture
def run(compose, tmp_path):
    """Run the recipe in a root of its own."""
    short = ("data.demo.num_examples=40", "data.epochs=1", "data.val_fraction=0.3", "data.num_checkpoints=1")
    short += ("recipe.global_batch_size=16", "trainer=cpu", "trainer.progress_bar=false", f"root={tmp_path}")
    return lambda *overrides: run_pipeline(compose(*short, *overrides))


@pytest.fixture
def model(base, tmp_path):
    """A copy of the model folder, and the overrides that name it."""
    folder = shutil.copytree(base, tmp_path / "base")
    return folder, ("model=local", f"model.path={folder}", "model.lr=1e-3")


def lose_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def make_a_weight_infinite(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lose_a_weight, r"1 weight is missing \(model\.norm\.weight\)"),
        (make_a_weight_infinite, r"1 of the 16 values of weight model\.norm\.weight are not finite"),
    ],
)
@pytest.mark.parametrize("others", ["another reference", "checkpoints"])
def test_a_target_that_cannot_be_read_is_refused_before_any_other_stage(
    run, model, base, monkeypatch, damage, says, others
):
    folder, overrides = model
    damage(folder)
    monkeypatch.setattr(reference, "tune", None)
    monkeypatch.setattr(confidence, "score", None)
    before = {"another reference": "model@reference.model=tiny", "checkpoints": f"confidence.checkpoints=[{base}]"}
    with pytest.raises(InputError, match=says):
        run(*overrides, before[others])


@pytest.mark.parametrize("key", ["reference.model", "confidence.checkpoints", "LoRA base"])
def test_a_model_that_cannot_be_read_is_refused_wherever_it_is_named(run, model, monkeypatch, key):
    folder, overrides = model
    lose_a_weight(folder)
    monkeypatch.setattr(tuning, "fit", None)
    monkeypatch.setattr(confidence, "score", None)
    overrides = {
        "reference.model": ("model@reference.model=local", f"reference.model.path={folder}", "reference.model.lr=1e-3"),
        "confidence.checkpoints": (f"confidence.checkpoints=[{folder}]",),
        "LoRA base": (*overrides, "recipe=ntp", "model/lora=default"),
    }[key]
    with pytest.raises(InputError, match=r"1 weight is missing \(model\.norm\.weight\)"):
        run(*overrides)


def test_flags_of_generation_that_cannot_be_saved_are_reset_and_named_once(run, model, capsys):
    folder, overrides = model
    flags = {"do_sample": False, "temperature": 0.9, "top_k": 20, "early_stopping": True, "repetition_penalty": 1.2}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, **flags}))
    plan = run(*overrides, "recipe=ntp", "model/lora=default")
    out = capsys.readouterr().out
    assert out.count("temperature=0.9, top_k=20, early_stopping=True reset in what is written") == 1
    assert out.count("lora        adapters on 7 of 11 weights, ") == 1
    written = GenerationConfig.from_pretrained(plan.target.folder / "model")
    assert (written.do_sample, written.repetition_penalty) == (False, 1.2)
    assert (written.temperature, written.top_k, written.early_stopping) == (None, None, None)


def test_what_cannot_be_saved_is_refused_before_the_first_step(run, model, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no such template")

    monkeypatch.setattr(tuning, "fit", None)
    monkeypatch.setattr(GenerationConfig, "save_pretrained", fail)
    with pytest.raises(InputError, match=r"cannot be saved \(no such template\)"):
        run(*model[1], "recipe=ntp")


def test_a_doubtful_export_is_a_warning_after_the_metrics_are_written(run, model, monkeypatch, capsys, tmp_path):
    """Logits that are those of another model do not refuse a finished run; its weights are compared bit for bit."""
    plain = tuning.load_causal_lm

    def other(*arguments):
        [run_folder] = tmp_path.glob("ntp-*.partial")
        metrics.append(read_json(run_folder / "metrics.json"))
        assert read_json(run_folder / "run.json")["config"]["model"]["path"] == str(model[0])
        causal_lm = plain(*arguments)
        for weight in causal_lm.parameters():
            torch.nn.init.normal_(weight)
        return causal_lm

    metrics: list[dict] = []
    monkeypatch.setattr(tuning, "load_causal_lm", other)
    plan = run(*model[1], "recipe=ntp", "trainer.precision=bf16-mixed")
    assert plan.target.is_complete
    assert read_json(plan.target.folder / "metrics.json") == metrics[0]
    assert "/model: its logits differ by" in capsys.readouterr().out
