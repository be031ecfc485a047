"""The three stages end to end on the embedded model: what they leave, what they skip, what they share."""

import itertools
import multiprocessing
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paths import CONF
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_table
from sftmix.data.demo import demo_rows
from sftmix.errors import InputError
from sftmix.functional.confidence import split_by_confidence
from sftmix.stages import reference, target
from sftmix.stages import train as tuning
from sftmix.stages.context import RunContext
from sftmix.stages.models import load_model
from sftmix.stages.pipeline import run_pipeline


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


def test_the_checkpoints_are_gone_once_scored_and_the_last_is_the_model(small_run):
    _, plan = small_run
    assert not (plan.reference.folder / "checkpoints").exists()
    assert (plan.reference.folder / "model" / "model.safetensors").is_file()


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


def test_a_second_call_runs_nothing(copy_of_run, run, monkeypatch, capsys):
    plan, root = copy_of_run
    monkeypatch.setattr(reference, "tune", None)
    monkeypatch.setattr(target, "tune", None)
    assert run(root=root).target.folder.name == plan.target.folder.name
    assert capsys.readouterr().out.count("already there") == 3


def test_another_mu_shares_reference_and_confidence(copy_of_run, run, monkeypatch, capsys):
    plan, root = copy_of_run
    monkeypatch.setattr(reference, "tune", None)
    other = run("recipe.mixup.mu=0.7", root=root)
    assert other.reference.fingerprint == plan.reference.fingerprint
    assert other.confidence.fingerprint == plan.confidence.fingerprint
    assert other.target.fingerprint != plan.target.fingerprint
    assert capsys.readouterr().out.count("already there") == 2


def test_the_ntp_baseline_is_the_reference_run(copy_of_run, run, monkeypatch, capsys):
    """`recipe=ntp` at the reference's seed finds it, and is shown beside the target."""
    plan, root = copy_of_run
    monkeypatch.setattr(reference, "tune", None)
    baseline = run("recipe=ntp", "recipe.global_batch_size=16", root=root)
    assert baseline.target.folder.name == plan.reference.folder.name
    assert plan.baseline.folder.name == plan.reference.folder.name
    assert "already there" in capsys.readouterr().out


def test_the_reference_is_found_where_the_baseline_was_tuned_first(run, monkeypatch, capsys):
    baseline = run("recipe=ntp", "recipe.global_batch_size=16")
    assert reference.has_checkpoints(baseline.target.folder, 2)
    monkeypatch.setattr(reference, "tune", None)
    plan = run()
    assert plan.reference.folder == baseline.target.folder
    assert "reference   already there" in capsys.readouterr().out


ONE_STEP = ("data.demo.num_examples=14", "data.val_fraction=0.3", "recipe.global_batch_size=16")


def test_a_baseline_of_fewer_steps_than_checkpoints_trains_and_keeps_no_checkpoint(run):
    plan = run(*ONE_STEP, "recipe=ntp")
    metrics = read_json(plan.target.folder / "metrics.json")
    assert (metrics["steps"], metrics["val_examples"] > 0) == (1, True)
    assert metrics["val_loss"] < metrics["val_loss_before"] - 0.01, "the only step has a learning rate"
    assert not list((plan.target.folder / "checkpoints").glob("*"))
    with pytest.raises(InputError, match=r"set data\.num_checkpoints=1, or more steps by data\.epochs=2$"):
        run(*ONE_STEP)


def test_with_as_many_checkpoints_as_steps_the_first_is_not_the_base(run, compose, small_overrides, tmp_path):
    many = ("data.demo.num_examples=24", "data.val_fraction=0", "recipe.global_batch_size=8", "data.num_checkpoints=3")
    plan = run(*many, "recipe=ntp")
    config = compose(*small_overrides, *many, f"root={tmp_path}")
    base = load_model(config.model).state_dict()
    folders = reference.checkpoint_folders(plan.target.folder)
    assert [folder.name for folder in folders] == ["step-000001", "step-000002", "model"]
    weights = [base, *(AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)]
    for earlier, later in itertools.pairwise(weights):
        assert not torch.equal(earlier["lm_head.weight"], later["lm_head.weight"])


def test_the_same_call_gives_the_same_bits(small_run, run):
    _, plan = small_run
    again = run()
    for name in ("val.parquet", "split.parquet"):
        assert read_table(again.target.folder / name) == read_table(plan.target.folder / name)
    weights = [AutoModelForCausalLM.from_pretrained(p.target.folder / "model").state_dict() for p in (plan, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_checkpoints_that_are_gone_with_their_scores_are_tuned_again(copy_of_run, run, capsys):
    plan, root = copy_of_run
    for stage in (plan.confidence, plan.target):
        shutil.rmtree(root / stage.folder.name)
    before = read_table(root / plan.reference.folder.name / "val.parquet")
    again = run(root=root)
    assert "its checkpoints and their scores are missing" in capsys.readouterr().out
    assert read_table(again.reference.folder / "val.parquet") == before


def test_folders_of_another_trainer_are_scored_in_the_references_place(copy_of_run, run, capsys):
    plan, root = copy_of_run
    folders = [root / p.folder.name / "model" for p in (plan.reference, plan.target)]
    scored = run(f"confidence.checkpoints=[{folders[0]},{folders[1]}]", root=root)
    assert scored.reference is None
    table = read_table(scored.confidence.folder / "confidence.parquet")
    assert set(table["checkpoint"]) == {1, 2}
    assert "reference" not in capsys.readouterr().out.split("confidence  scoring")[0].split("device")[1]
    own = read_table(root / plan.confidence.folder.name / "confidence.parquet")
    last = {i: n for i, c, n in zip(own["example_id"], own["checkpoint"], own["nll"], strict=True) if c == 2}
    first = {i: n for i, c, n in zip(table["example_id"], table["checkpoint"], table["nll"], strict=True) if c == 1}
    assert first == last, "the reference's last checkpoint is its tuned model"


def test_which_checkpoints_count_needs_no_training_of_a_reference(copy_of_run, run, monkeypatch):
    plan, root = copy_of_run
    monkeypatch.setattr(reference, "tune", None)
    for use in ("1", "[1]"):
        other = run(f"confidence.use={use}", root=root)
        assert other.confidence.fingerprint == plan.confidence.fingerprint
        split = read_table(other.target.folder / "split.parquet")
        scores = read_table(other.confidence.folder / "confidence.parquet")
        wanted = 2 if use == "1" else 1
        ppl = {
            i: -(2.718281828459045 ** (nll / n))
            for i, c, n, nll in zip(
                *(scores[k] for k in ("example_id", "checkpoint", "num_tokens", "nll")), strict=True
            )
            if c == wanted
        }
        assert split["confidence"] == pytest.approx([ppl[i] for i in split["example_id"]], rel=1e-12)


def test_a_confidence_file_made_elsewhere_is_enough(copy_of_run, run, monkeypatch):
    plan, root = copy_of_run
    file = root / plan.confidence.folder.name / "confidence.parquet"
    monkeypatch.setattr(reference, "tune", None)
    other = run(f"confidence.path={file}", "recipe.mixup.mu=0.3", root=root)
    assert (other.reference, other.confidence) == (None, None)
    assert read_table(other.target.folder / "split.parquet") == read_table(
        root / plan.target.folder.name / "split.parquet"
    )


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


def _tune_in_turn(overrides, root, tuned):
    import hydra

    from sftmix.config.load import from_hydra

    whole = reference.tune
    reference.tune = lambda *a, **k: (tuned.put(1), whole(*a, **k))[1]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        run_pipeline(from_hydra(hydra.compose("config", [*overrides, f"root={root}"])))


@pytest.mark.slow
def test_of_two_runs_at_once_one_tunes_the_reference_for_both(small_overrides, tmp_path):
    context = multiprocessing.get_context("spawn")
    tuned = context.Queue()
    keep = "reference.keep_checkpoints=true"
    runs = [
        context.Process(target=_tune_in_turn, args=((*small_overrides, keep, f"recipe.mixup.mu={mu}"), tmp_path, tuned))
        for mu in (0.1, 0.5)
    ]
    for process in runs:
        process.start()
    for process in runs:
        process.join(240)
    assert [process.exitcode for process in runs] == [0, 0]
    assert tuned.qsize() == 1
    assert len(list(tmp_path.glob("sftmix-*/manifest.json"))) == 2


def test_a_stage_that_fails_leaves_nothing_that_looks_complete(run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tuning, "export", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run()
    assert not list(tmp_path.glob("*/manifest.json"))
    monkeypatch.undo()
    assert run().target.is_complete


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

    packed = nll("trainer.layout=packed", "trainer.micro_batch_tokens=60", "data.epochs=2")
    padded = nll("trainer.layout=padded", "trainer.micro_batch_tokens=8192", "data.epochs=2")
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
