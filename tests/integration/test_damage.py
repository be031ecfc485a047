"""A file of an artifact that is damaged: one line with the file and the command that makes it again."""

import errno

import pytest

from resealed import write_json
from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.errors import InputError
from sftmix.evaluation.target import find_target
from sftmix.reports.summary import summarize
from sftmix.stages import pipeline as recipe


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


@pytest.fixture
def again(copy_of_run, compose, small_overrides, monkeypatch):
    """Another weight of Mixup over the same data, reference and confidence; nothing may be trained."""
    _, root = copy_of_run
    monkeypatch.setattr(recipe, "run_stage_on_ranks", lambda *_, **__: pytest.fail("damaged input reached a stage"))

    def run(*overrides):
        return recipe.run_pipeline(compose(*small_overrides, f"root={root}", "recipe.mixup.mu=0.7", *overrides))

    return root, run


def only(root, pattern):
    (found,) = root.glob(pattern)
    return found


@pytest.mark.parametrize(
    "pattern",
    [
        "data/tokens-*/00000.arrow",
        "data/tokens-*/census.json",
        "data/tokens-*/manifest.json",
        "data/examples-*/00000.arrow",
        "data/examples-*/reading.json",
        "data/examples-*/manifest.json",
        "confidence-*/confidence.parquet",
        "confidence-*/manifest.json",
        "ntp-*/manifest.json",
    ],
)
@pytest.mark.parametrize("damage", [flip, lambda file: file.write_bytes(b"")], ids=["flipped", "empty"])
def test_a_damaged_input_of_a_stage_is_named_before_training(again, pattern, damage):
    root, run = again
    file = only(root, pattern)
    damage(file)
    with pytest.raises(InputError) as error:
        run()
    assert str(error.value).startswith(f"{file}: ")
    assert f"; delete {file.parent} and run " in str(error.value)


def test_a_damaged_folder_that_is_given_is_named_before_training(again, compose):
    root, run = again
    model = only(root, "ntp-*") / "model"
    flip(model / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: is damaged: its content does not"):
        run(f"confidence.checkpoints=[{model}]")
    local = ("model=local", f"model.path={model}", "model.lr=1e-3", "recipe=ntp", "trainer=cpu", f"root={root}")
    with pytest.raises(InputError, match=r"model\.safetensors: is damaged: its content does not"):
        recipe.run_pipeline(compose(*local, "data.demo.num_examples=120"))
    scores = only(root, "confidence-*/confidence.parquet")
    flip(scores)
    with pytest.raises(InputError, match=r"confidence\.parquet: is damaged"):
        run(f"confidence.path={scores}")


def test_a_missing_and_an_extra_shard_are_named(again):
    root, run = again
    shard = only(root, "data/tokens-*/00000.arrow")
    extra = shard.with_name("00001.arrow")
    extra.write_bytes(shard.read_bytes())
    with pytest.raises(InputError, match=r"00001\.arrow: not a file of the artifact tokens-.*; remove it"):
        run()
    shard.rename(extra)
    with pytest.raises(InputError, match=r"00000\.arrow: is missing; delete"):
        run()


@pytest.mark.parametrize("name", ["split.parquet", "val.parquet", "metrics.json", "run.json", "answers.json", MANIFEST])
@pytest.mark.parametrize("damage", [flip, lambda file: file.write_bytes(b"")], ids=["flipped", "empty"])
def test_a_damaged_file_of_a_finished_run_is_named_by_the_summary(copy_of_run, name, damage):
    plan, root = copy_of_run
    target = root / plan.target.folder.name
    confidence, baseline = (root / artifact.folder.name for artifact in (plan.confidence, plan.baseline))
    summarize(target, confidence, baseline)
    damage(target / name)
    with pytest.raises(InputError, match=rf"{name}: .*; delete {target} and run .* again"):
        summarize(target, confidence, baseline)


def test_damaged_weights_are_named_before_an_evaluation(copy_of_run):
    plan, root = copy_of_run
    run = root / plan.target.folder.name
    assert find_target(str(run), None, root).run == run
    flip(run / "model/model.safetensors")
    from sftmix.artifacts.manifest import forget_verified

    forget_verified()  # as another command
    for given in (run, run / "model"):
        with pytest.raises(InputError, match=r"model\.safetensors: is damaged: .*; delete .* and run `python"):
            find_target(str(given), None, root)


def test_a_kill_while_checkpoints_are_dropped_is_made_up_for(copy_of_run, compose, small_overrides, monkeypatch):
    """The reference is complete, its scores too, and the process is killed before the checkpoints are removed."""
    plan, root = copy_of_run
    reference = root / plan.reference.folder.name
    (reference / "checkpoints/step-000004").mkdir(parents=True)
    (reference / f".drop-after-{plan.confidence.folder.name}").touch()
    (reference / "states/step-1").mkdir(parents=True)
    config = compose(*small_overrides, f"root={root}")
    recipe.run_pipeline(config)
    assert not [f.name for f in reference.iterdir() if f.name.startswith(("checkpoints", "states", ".drop"))]


def test_checkpoints_that_are_kept_stay(copy_of_run, compose, small_overrides):
    plan, root = copy_of_run
    reference = root / plan.reference.folder.name
    (reference / "checkpoints/step-000004").mkdir(parents=True)
    recipe.run_pipeline(compose(*small_overrides, f"root={root}"))
    assert (reference / "checkpoints/step-000004").is_dir(), "an earlier command has kept them"
    (reference / f".drop-after-{plan.confidence.folder.name}").touch()
    recipe.run_pipeline(compose(*small_overrides, f"root={root}", "reference.keep_checkpoints=true"))
    recipe.run_pipeline(compose(*small_overrides, f"root={root}"))
    assert (reference / "checkpoints/step-000004").is_dir()


def test_a_root_that_cannot_be_written_can_be_listed(copy_of_run, compose, small_overrides, monkeypatch):
    from sftmix.stages import inputs
    from sftmix.stages.plan import plan_run

    _, root = copy_of_run

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(inputs.tempfile, "TemporaryFile", read_only)
    plan_run(compose(*small_overrides, f"root={root}", "mode=list"))


def test_an_altered_run_that_is_sealed_again_is_read(copy_of_run):
    plan, root = copy_of_run
    file = root / plan.target.folder.name / "metrics.json"
    write_json(file, {**read_json(file), "seconds": 1})
    assert read_json(file)["seconds"] == 1
