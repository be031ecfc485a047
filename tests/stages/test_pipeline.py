"""The three stages end to end on the embedded model: what they leave, what they skip, what they share."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_table
from sftmix.data.demo import demo_rows
from sftmix.functional.confidence import split_by_confidence
from sftmix.stages.context import RunContext
from sftmix.stages.models import load_model
from sftmix.stages.pipeline import run_pipeline
from sftmix.stages.sample_answers import ANSWER_TOKENS, ANSWERS


def test_every_stage_leaves_what_it_should(small_run):
    _, plan = small_run
    run_files = {
        "model",
        "logs",
        "metrics.json",
        "val.parquet",
        "census.json",
        "answers.json",
        "run.json",
        "manifest.json",
    }
    assert run_files <= {f.name for f in plan.target.folder.iterdir()}
    assert (plan.target.folder / "split.parquet").is_file()
    assert run_files <= {f.name for f in plan.reference.folder.iterdir()}
    assert {"confidence.parquet", "examples.parquet", "run.json", "manifest.json"} == {
        f.name for f in plan.confidence.folder.iterdir()
    }
    assert not list(Path(plan.target.root).glob("*.partial"))


def test_the_tuned_model_is_an_ordinary_folder_that_generates(small_run):
    _, plan = small_run
    model = AutoModelForCausalLM.from_pretrained(plan.target.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(plan.target.folder / "model")
    turns = [{"role": "user", "content": "Repeat the words.\n\nthe red cat and the blue dog"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=5, do_sample=False)
    assert out.shape[1] > ids["input_ids"].shape[1]


@pytest.mark.parametrize("kind", ["reference", "target"])
def test_the_untuned_and_the_written_model_answer_the_same_examples(small_run, kind):
    """By transformers, one example at a time."""
    config, plan = small_run
    folder = getattr(plan, kind).folder
    context = RunContext(config)
    encoded = context.encoded(config.model)
    written = read_json(folder / "answers.json")
    assert len(written) == ANSWERS
    models = {"before": load_model(config.model), "answer": AutoModelForCausalLM.from_pretrained(folder / "model")}
    settings = {"max_new_tokens": ANSWER_TOKENS, "do_sample": False, "eos_token_id": encoded.encoder.end_token_id}
    for k, shown in enumerate(written):
        prompt = torch.tensor([list(encoded.val[k].input_ids[: encoded.val[k].num_prompt_tokens])])
        assert shown["response"] == context.data.examples[int(encoded.val.lines[k])].response
        for name, model in models.items():
            [ids] = model.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **settings)
            text = encoded.tokenizer.decode(ids[prompt.shape[1] :], skip_special_tokens=True).strip()
            assert shown[name] == text, name


def test_confidence_is_recomputed_by_hand_from_the_parquet(small_run):
    """-(1/C) sum_c exp(nll / num_tokens), in plain Python; the split is that of the training part."""
    _, plan = small_run
    scores = read_table(plan.confidence.folder / "confidence.parquet")
    assert set(scores["checkpoint"]) == {1, 2}
    by_hand: dict[str, list[float]] = {}
    for example_id, num_tokens, nll in zip(scores["example_id"], scores["num_tokens"], scores["nll"], strict=True):
        by_hand.setdefault(example_id, []).append(2.718281828459045 ** (nll / num_tokens))
    examples = read_table(plan.confidence.folder / "examples.parquet")
    assert len(examples["example_id"]) == 120
    for example_id, value in zip(examples["example_id"], examples["confidence"], strict=True):
        assert value == pytest.approx(-sum(by_hand[example_id]) / 2, rel=1e-12)
    split = read_table(plan.target.folder / "split.parquet")
    is_train = [part == "train" for part in split["part"]]
    assert len(is_train) == 120
    split = {name: [v for v, chosen in zip(values, is_train, strict=True) if chosen] for name, values in split.items()}
    confident = split_by_confidence(torch.tensor(split["confidence"], dtype=torch.float64), split["example_id"])
    assert ["confident" if c else "unconfident" for c in confident.tolist()] == split["subset"]
    train = {i for i, part in zip(examples["example_id"], examples["part"], strict=True) if part == "train"}
    assert set(split["example_id"]) == train


def test_scores_are_those_of_the_saved_checkpoint(small_run):
    """The last checkpoint's held-out nats are those that the NTP run itself measured at its end."""
    _, plan = small_run
    scores = read_table(plan.confidence.folder / "confidence.parquet")
    last = {
        i: nll for i, c, nll in zip(scores["example_id"], scores["checkpoint"], scores["nll"], strict=True) if c == 2
    }
    val = read_table(plan.reference.folder / "val.parquet")
    assert val["example_id"]
    for example_id, nll in zip(val["example_id"], val["nll"], strict=True):
        assert last[example_id] == pytest.approx(nll, rel=1e-4)


def test_the_held_out_loss_fell(small_run):
    _, plan = small_run
    metrics = read_json(plan.target.folder / "metrics.json")
    assert metrics["val_loss"] < metrics["val_loss_before"]
    assert metrics["pairs"] > 0
    assert metrics["steps"] == 7


def test_the_census_adds_up(small_run):
    _, plan = small_run
    census = read_json(plan.target.folder / "census.json")
    assert census["total"] == census["kept"] == census["rows"]["total"] == census["rows"]["kept"] == 120


def test_the_passport_names_what_was_run_and_no_secret(run, monkeypatch):
    secrets = {
        "HF_TOKEN": "hf_" + "s3cret" * 5,
        "WANDB_API_KEY": "k3y" * 13 + "0",
        "OPENAI_API_KEY": "sk-" + "0pen" * 9,
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    plan = run("recipe=ntp", "recipe.global_batch_size=16", "data.val_fraction=0")
    for file in plan.target.folder.rglob("*"):
        if file.is_file():
            assert not [name for name, value in secrets.items() if value.encode() in file.read_bytes()], file
    passport = read_json(plan.target.folder / "run.json")
    assert passport["config"]["recipe"]["name"] == "ntp"
    assert passport["packages"]["torch"]
    assert passport["precision"] == "32-true"
    assert read_json(plan.target.folder / "metrics.json")["val_loss"] is None, "nothing was held out"


def test_ntp_on_one_half_trains_on_that_half_alone(copy_of_run, run):
    _, root = copy_of_run
    plan = run("recipe=ntp", "recipe.global_batch_size=16", "recipe.ntp.on=confident", root=root)
    split = read_table(plan.target.folder / "split.parquet")
    metrics = read_json(plan.target.folder / "metrics.json")
    halves = [half for half, part in zip(split["subset"], split["part"], strict=True) if part == "train"]
    assert metrics["examples"] == halves.count("confident")
    assert metrics["pairs"] == 0


def test_a_weaker_reference_of_another_tokenizer_gives_the_same_kind_of_confidence(run, tmp_path, tiny_tokenizer):
    """Confidence is keyed by example, not by token."""
    from sftmix.models.export import export
    from sftmix.models.tiny import tiny_llama

    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 256, "seed": 5}
    tiny_tokenizer.chat_template = "{{ eos_token }}"
    export(tiny_llama(tiny_tokenizer, **shape), tiny_tokenizer, tmp_path / "weak", "float32", 1)
    plan = run(
        "model.init.vocab_size=350",
        "model@reference.model=local",
        f"reference.model.path={tmp_path / 'weak'}",
        "reference.model.lr=1e-3",
    )
    split = read_table(plan.target.folder / "split.parquet")
    assert None not in split["subset"]
    scores, ours = (
        read_table(f) for f in (plan.confidence.folder / "confidence.parquet", plan.target.folder / "val.parquet")
    )
    theirs = dict(zip(scores["example_id"], scores["num_tokens"], strict=True))
    assert [theirs[i] for i in ours["example_id"]] != ours["num_tokens"], "another tokenizer, other tokens"
    assert plan.reference.title.startswith("ntp-weak-demo")
    assert not plan.baseline.is_complete


def test_wandb_works_offline_without_an_account(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    plan = run("recipe=ntp", "recipe.global_batch_size=16", "logger=wandb")
    runs = list(plan.target.folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(runs) == 1
    for file in plan.target.folder.rglob("*"):
        if file.is_file():
            assert b"0" * 40 not in file.read_bytes(), f"a key in {file}"


def test_the_embedded_rows_are_what_is_trained_on(small_run):
    _, plan = small_run
    examples = read_table(plan.confidence.folder / "examples.parquet")
    rows = demo_rows(120, 0)
    for row, group, response in zip(examples["row"], examples["group"], examples["response"], strict=True):
        assert (rows[row - 1]["group"], rows[row - 1]["output"]) == (group, response)


def test_the_layout_changes_how_it_runs_and_not_what_is_learnt(run, tmp_path):
    def nll(*overrides):
        plan = run(*overrides, root=tmp_path / overrides[0][-6:])
        assert read_json(plan.target.folder / "run.json")["layout"] == overrides[0].split("=")[1]
        return read_table(plan.target.folder / "val.parquet")["nll"]

    packed = nll("trainer.layout=packed", "trainer.micro_batch_tokens=60", "split.by=random")
    padded = nll("trainer.layout=padded", "trainer.micro_batch_tokens=8192", "split.by=random")
    assert packed == pytest.approx(padded, rel=1e-4)
    assert packed != padded, "they round differently, or the setting did nothing"


def test_figures_are_read_at_the_first_every_kth_and_the_last_step(run):
    plan = run("recipe=ntp", "trainer.log_every_n_steps=3")
    lines = (plan.target.folder / "logs" / "metrics.csv").read_text().splitlines()
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    steps = [int(row["step"]) for row in rows if row["train/loss"]]
    last = read_json(plan.target.folder / "metrics.json")["steps"] - 1
    assert steps == sorted({0, *range(2, last, 3), last})
    assert all(float(row["train/loss"]) > 0 for row in rows if row["train/loss"])
    assert all(row["perf/tokens_per_sec"] for row in rows if row["train/loss"])


def own_nll(plan, ids):
    """Nats of held-out responses by transformers' own loss under the written model, whose forward knows no noise."""
    model = AutoModelForCausalLM.from_pretrained(plan.target.folder / "model").eval()
    found = []
    for e in ids:
        labels = torch.tensor([e.input_ids])
        labels[0, : e.num_prompt_tokens] = -100
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([e.input_ids]), labels=labels).loss
        found.append(loss.item() * e.num_response_tokens)
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        ("recipe=neftune", "recipe.neftune_alpha=50"),
        ("recipe=instruction_modelling",),
        ("recipe=sftmix", "recipe.neftune_alpha=50", "recipe.ntp.prompt_weight=0.5"),
    ],
    ids=["neftune", "instruction modelling", "sftmix with both"],
)
def test_a_related_recipe_ends_beside_the_baseline_and_its_held_out_loss_knows_no_noise(
    compose, small_overrides, copy_of_run, overrides
):
    from sftmix.reports.summary import summarize

    before, root = copy_of_run
    config = compose(*small_overrides, f"root={root}", *overrides)
    plan = run_pipeline(config)
    folder, baseline = plan.target.folder, plan.baseline.folder
    assert baseline.name == before.reference.folder.name, "the NTP run that is there"
    assert (plan.confidence is None) == (overrides[0] != "recipe=sftmix")
    if plan.confidence is not None:
        assert plan.confidence.fingerprint == before.confidence.fingerprint
    assert folder != before.target.folder
    assert not (folder / "checkpoints").exists()
    metrics, of_baseline = read_json(folder / "metrics.json"), read_json(baseline / "metrics.json")
    assert metrics["val_loss_before"] == of_baseline["val_loss_before"], "one model before, measured in one way"
    assert metrics["val_loss"] < metrics["val_loss_before"]
    assert metrics["val_loss"] != of_baseline["val_loss"], "the recipe did something"
    val = RunContext(config).encoded(config.model).val
    assert read_table(folder / "val.parquet")["nll"] == pytest.approx(own_nll(plan, val), rel=1e-4)
    name = {"neftune": "NEFTune", "instruction_modelling": "instruction modelling"}.get(
        config.recipe.name, "SFTMix+noise+prompts"
    )
    text = summarize(folder, None, baseline)
    assert re.split(r"\s{2,}", text.splitlines()[2].strip()) == ["before", "NTP", name, "difference [95%]"]
    assert f"{name} against NTP: " in text


def test_loss_on_prompts_teaches_prompts(compose, small_overrides, tmp_path):
    """Nats a token of held-out prompts under the written models, by transformers' own loss."""

    def on_prompts(recipe):
        config = compose(*small_overrides, f"root={tmp_path}", f"recipe={recipe}", "model.lr=1e-2")
        model = AutoModelForCausalLM.from_pretrained(run_pipeline(config).target.folder / "model").eval()
        prompts = [e.input_ids[: e.num_prompt_tokens] for e in RunContext(config).encoded(config.model).val]
        with torch.no_grad():
            losses = [
                model(input_ids=ids, labels=ids).loss.item() for ids in (torch.tensor([prompt]) for prompt in prompts)
            ]
        return sum(losses) / len(losses)

    prompted, plain = on_prompts("instruction_modelling"), on_prompts("ntp")
    assert prompted < plain - 0.4, (prompted, plain)
