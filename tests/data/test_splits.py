"""Splits of a local folder: found as `datasets` finds them, chosen by data.split, and never mixed."""

import json

import pytest

from sftmix.data.files import data_files, other_files, other_splits
from sftmix.data.sources import read_path
from sftmix.data.splits import KEYWORDS, split_names
from sftmix.errors import InputError

HASH = "a3ecf92756993583"
ULTRACHAT = [
    f"data/{name}-0000{k}-of-00002-{HASH}.parquet"
    for name in ("test_gen", "test_sft", "train_gen", "train_sft")
    for k in (0, 1)
]


def make(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"instruction": name, "output": "B"}))
    return folder


def chosen(folder, split):
    return sorted(str(file.relative_to(folder)) for file in data_files(folder, split=split))


def splits_of_datasets(folder):
    """The files of each split, relative to the folder, by the library itself."""
    from datasets import DownloadConfig
    from datasets.data_files import DataFilesPatternsDict, get_data_patterns

    patterns = DataFilesPatternsDict.from_patterns(get_data_patterns(str(folder)))
    found = patterns.resolve(str(folder), DownloadConfig())
    return {str(split): sorted(str(f).removeprefix(f"{folder}/") for f in files) for split, files in found.items()}


def test_the_keywords_are_those_of_datasets():
    from datasets.data_files import SPLIT_KEYWORDS

    assert {family: list(words) for family, words in KEYWORDS.items()} == {
        str(split): words for split, words in SPLIT_KEYWORDS.items()
    }


@pytest.mark.parametrize(
    "names",
    [
        ULTRACHAT,
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
        ["data/sft-00000-of-00001.parquet", "data/prefs-00000-of-00001.parquet"],
        ["train.jsonl", "test.jsonl", "validation.jsonl", "README.md"],
        ["default/train/0000.parquet", "default/test/0000.parquet", "default/validation/0000.parquet"],
        ["main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet", "extra/train-00000-of-00001.parquet"],
        ["train/a.json", "train/b.json", "dev/a.json"],
        ["alpaca_train.jsonl", "dolly-train.jsonl", "alpaca-eval.jsonl"],
        ["my_val.csv", "my_train_0.csv", "my_train_1.csv"],
        ["training.jsonl", "testing.jsonl"],
        [".git/train.jsonl", "__MACOSX/train.jsonl", "train.jsonl", "test.jsonl", ".train.jsonl.swp"],
    ],
)
def test_each_split_has_the_files_that_datasets_gives_it(tmp_path, names):
    folder = make(tmp_path / "clone", names)
    expected = splits_of_datasets(folder)
    assert len(expected) > 1
    for split, files in expected.items():
        assert chosen(folder, split) == [name for name in files if not name.endswith(".md")]
    with pytest.raises(InputError, match="its files belong to the splits") as error:
        data_files(folder)
    assert "choose one by data.split=NAME" in str(error.value)


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (ULTRACHAT, "the splits test_gen, test_sft, train_gen, train_sft"),
        (["train_sft/0.parquet", "train_gen/0.parquet"], "the splits train_gen, train_sft"),
        (["train.json", "test.csv.gz"], "the splits test, train"),
        (["Train.jsonl", "TEST.jsonl"], "the splits test, train"),
        (["training_data.jsonl", "testing_data.jsonl"], "the splits testing_data, training_data"),
        (["mine/my_test_project/train.jsonl", "mine/my_test_project/dev.jsonl"], "the splits dev, train"),
        (["test_project/train_sft.jsonl", "test_project/test_sft.jsonl"], "the splits test_sft, train_sft"),
        (["alpaca.jsonl", "alpaca_test.jsonl"], r"the split test and no split \(alpaca.jsonl\)"),
        (["validation_matched.jsonl", "validation_mismatched.jsonl"], "the splits validation_matched, validation_mis"),
        (["trainset.jsonl", "testset.jsonl"], "the splits testset, trainset"),
        (["TrainData.json", "TestData.json"], "the splits testdata, traindata"),
        (["sftTrain.jsonl", "sftTest.jsonl"], "the splits test, train"),
        (["data (train).csv", "data (test).csv"], "the splits test, train"),
        (["train.jsonl", "holdout.jsonl"], "the splits holdout, train"),
        (["train/a.jsonl", "held_out/a.jsonl"], "the splits held_out, train"),
    ],
)
def test_a_folder_with_several_splits_and_no_split_set_is_an_error_that_lists_them(tmp_path, names, listed):
    with pytest.raises(InputError, match=rf"^data\.path=.*: its files belong to {listed}.*data\.split=NAME") as error:
        data_files(make(tmp_path / "clone", names))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["train_part1.jsonl", "train_part2.jsonl", "train.3.jsonl"],
        ["train_0_of_2.jsonl", "train_1_of_2.jsonl"],
        ["alpaca_train.jsonl", "dolly_train.jsonl"],
        ["test.jsonl"],
        ["train.jsonl", "training_notes.jsonl"],
        ["latest.jsonl", "contest.jsonl", "protest.jsonl", "training_notes.jsonl", "trainer.jsonl", "devices.jsonl"],
        ["DevOps.jsonl", "TestDriven.jsonl", "LatestNews.jsonl", "python.jsonl"],
        ["alpaca.jsonl", "dolly.jsonl"],
        ["data/data-00000-of-00001.parquet"],
        ["part1.json", "part2.json"],
    ],
)
def test_a_folder_with_one_split_or_none_is_read_whole(tmp_path, names):
    assert chosen(make(tmp_path, names), None) == sorted(names)


@pytest.mark.parametrize(
    ("names", "split", "read"),
    [
        (ULTRACHAT, "train_sft", [name for name in ULTRACHAT if "train_sft" in name]),
        (ULTRACHAT, "train_sft+train_gen", [name for name in ULTRACHAT if "train" in name]),
        (ULTRACHAT, "all", ULTRACHAT),
        (["train_sft.jsonl", "train_gen.jsonl"], "train_sft", ["train_sft.jsonl"]),
        (["default/train_sft/0000.parquet", "default/train_gen/0000.parquet"], "train_sft",
         ["default/train_sft/0000.parquet"]),
        (["train.jsonl", "train_sft.jsonl"], "train", ["train.jsonl"]),
        (["dev.jsonl", "train.jsonl"], "validation", ["dev.jsonl"]),
        (["alpaca.jsonl", "alpaca_test.jsonl"], "alpaca", ["alpaca.jsonl"]),
        (["sft/a.json", "gen/a.json"], "sft", ["sft/a.json"]),
        (["alpaca.jsonl", "dolly.jsonl"], "train", ["alpaca.jsonl", "dolly.jsonl"]),
        (["alpaca.jsonl"], "train_sft", ["alpaca.jsonl"]),
        (["trainset.jsonl", "testset.jsonl"], "train", ["trainset.jsonl"]),
        (["sftTrain.jsonl", "sftTest.jsonl"], "train", ["sftTrain.jsonl"]),
        (["sftTrain.jsonl", "sftTest.jsonl"], "sftTest", ["sftTest.jsonl"]),
    ],
)  # fmt: skip
def test_a_split_is_chosen_by_the_name_of_a_split_a_folder_or_a_file(tmp_path, names, split, read):
    assert chosen(make(tmp_path, names), split) == sorted(read)


@pytest.mark.parametrize(
    ("names", "split", "says"),
    [
        (["train.jsonl", "test.jsonl"], "train_sft", "has no split train_sft, its files belong to the splits test, tr"),
        (["train.jsonl"], "test", "has no split test, its files belong to the split train"),
        (ULTRACHAT, "train", "has no split train, its files belong to the splits test_gen, test_sft, train_gen"),
        (["train.jsonl", "test.jsonl"], "train+dev", "has no split dev"),
        (["train.jsonl"], "train[:10]", r"has no split train\[:10\]"),
        (["alpaca.jsonl"], "validation", r"its files belong to no split \(alpaca.jsonl\), which counts as train"),
    ],
)  # fmt: skip
def test_a_missing_split_is_an_error_that_lists_the_splits(tmp_path, names, split, says):
    with pytest.raises(InputError, match=says) as error:
        data_files(make(tmp_path, names), split=split)
    assert str(error.value).startswith(f"data.split={split}: ")


def test_the_shipped_data_set_reads_its_split_of_a_clone_and_says_what_it_left(compose, tmp_path):
    from sftmix.stages.context import RunContext
    from sftmix.stages.prepare import describe_reading, source_rows

    clone = make(
        tmp_path / "clone", [f"{name}-00000-of-00001.jsonl" for name in ("train_sft", "train_gen", "test_sft")]
    )
    for name in ("README.md", "dataset_infos.json", ".gitattributes", ".git/config.json"):
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_text("{}")
    config = compose("data=ultrachat", f"data.path={clone}", "trainer.progress_bar=false", f"root={tmp_path / 'runs'}")
    assert [row.source for row in source_rows(config.data)] == ["train_sft-00000-of-00001.jsonl"]
    said = describe_reading(config.data, RunContext(config).data.reading)
    assert "2 data files of other splits than train_sft, not read: test_sft-00000-of-00001.jsonl, train_gen-" in said
    assert "2 files of kinds that are not read: README.md, dataset_infos.json" in said
    assert other_files(clone) == ["README.md", "dataset_infos.json"]
    assert other_splits(clone, None) == []


def test_a_clone_without_the_split_is_refused_before_anything_is_read(compose, tmp_path):
    from sftmix.stages.inputs import check_inputs

    clone = make(tmp_path / "clone", ["train.jsonl", "test.jsonl"])
    for overrides, says in (
        ([f"data.path={clone}", "data=ultrachat"], r"data\.split=train_sft: .* the splits test, train"),
        ([f"data.path={clone}", "data=own"], r"data\.path=.* the splits test, train; choose one by data\.split=NAME"),
        ([f"data.path={clone}/train.jsonl", "data=alpaca_quality", f"data.replacement.path={clone}",
          "data.replacement.split=dev"], r"data\.replacement\.split=dev: .* the splits test, train"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            check_inputs(compose(*overrides, f"root={tmp_path}"))
    check_inputs(compose("data=own", f"data.path={clone}", "data.split=train+test", f"root={tmp_path}"))


def test_another_split_is_another_fingerprint(compose, tmp_path):
    from sftmix.stages.plan import examples_artifact

    clone = make(tmp_path / "clone", ["train.jsonl", "test.jsonl"])
    overrides = ("data=own", f"data.path={clone}", f"root={tmp_path}")
    found = {examples_artifact(compose(*overrides, f"data.split={s}")).fingerprint for s in ("train", "test", "all")}
    assert len(found) == 3


def test_a_saved_data_set_is_read_and_its_splits_are_kept_apart(tmp_path):
    import datasets

    rows = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(200)]
    one = datasets.Dataset.from_list(rows)
    one.save_to_disk(tmp_path / "one", num_shards=2)
    assert [row.fields for row in read_path(tmp_path / "one", "train")] == rows
    assert len(data_files(tmp_path / "one")) == 2
    (tmp_path / "one" / "data-00000-of-00009.arrow").write_bytes(b"left by an earlier save")
    assert [row.fields for row in read_path(tmp_path / "one")] == rows
    both = datasets.DatasetDict({"train": one, "sft": one.select(range(9)).map(lambda row: {"output": "x"})})
    both.save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match="its files belong to the splits sft, train; choose"):
        data_files(tmp_path / "both")
    assert [row.fields["output"] for row in read_path(tmp_path / "both", "sft")] == ["x"] * 9
    assert len(list(read_path(tmp_path / "both", "train"))) == 200
    assert split_names([tmp_path / "both" / "sft" / "data-00000-of-00001.arrow"], tmp_path / "both") == ["sft"]
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"state\.json: damaged"):
        data_files(tmp_path / "one")
