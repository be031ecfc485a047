"""Read the four medical benchmarks: their published files, the test questions, and the pool of shots."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sftmix.data.rows import Row
from sftmix.data.sources import read_file
from sftmix.errors import InputError
from sftmix.evaluation.medical.hub_sets import HubSet, is_label, open_table, records_of
from sftmix.evaluation.medical.questions import (
    Item,
    Part,
    json_object,
    pubmedqa_by_id,
    read_medmcqa,
    read_medqa,
    read_pubmedqa,
    without_those_of,
)
from sftmix.evaluation.published import Published, locate

HELD_OUT = 200  # last test questions that become shots with pool=held_out

_HUB = "https://huggingface.co/datasets"
_MEDQA_HOME = "https://github.com/jind11/MedQA"
_MEDMCQA_HOME = "https://github.com/medmcqa/medmcqa"
_MEDQA = f"{_HUB}/GBaker/MedQA-USMLE-4-options/resolve/0fb93dd23a7339b6dcd27e241cb9b5eca62d4d18"
_MEDQA_5 = f"{_HUB}/bigbio/med_qa/resolve/e04abdc0672c54547fa1dbe36cfefc000e4f2657/med_qa_en_source"
_MEDMCQA = f"{_HUB}/openlifescienceai/medmcqa/resolve/91c6572c454088bf71b679ad90aa8dffcd0d5868/data"
_PUBMEDQA = "https://raw.githubusercontent.com/pubmedqa/pubmedqa/1f00b98d5cc626844bf8c4ca513b6e62c40071ec/data"

# Files with the same content, by (benchmark, part): first the publishers' file, last the file that can be fetched.
FILES: dict[tuple[str, str], tuple[Published, ...]] = {
    ("MedQA", "test"): (Published("medqa_us_4options_test.jsonl", f"{_MEDQA}/phrases_no_exclude_test.jsonl"),),
    ("MedQA", "train"): (Published("medqa_us_4options_train.jsonl", f"{_MEDQA}/phrases_no_exclude_train.jsonl"),),
    ("MedQA-5", "test"): (
        Published("medqa_us_5options_test.jsonl", _MEDQA_HOME),
        Published("medqa_us_5options_test.parquet", f"{_MEDQA_5}/test/0000.parquet"),
    ),
    ("MedQA-5", "train"): (
        Published("medqa_us_5options_train.jsonl", _MEDQA_HOME),
        Published("medqa_us_5options_train.parquet", f"{_MEDQA_5}/train/0000.parquet"),
    ),
    ("MedMCQA", "test"): (
        Published("medmcqa_dev.jsonl", _MEDMCQA_HOME),
        Published("medmcqa_dev.parquet", f"{_MEDMCQA}/validation-00000-of-00001.parquet"),
    ),
    ("MedMCQA", "train"): (
        Published("medmcqa_train.jsonl", _MEDMCQA_HOME),
        Published("medmcqa_train.parquet", f"{_MEDMCQA}/train-00000-of-00001.parquet"),
    ),
    ("PubMedQA", "labelled"): (Published("ori_pqal.json", f"{_PUBMEDQA}/ori_pqal.json"),),
    ("PubMedQA", "test"): (Published("test_ground_truth.json", f"{_PUBMEDQA}/test_ground_truth.json"),),
}
# Splits of the hub's data sets by part. PubMedQA's test is only defined by test_ground_truth.json
SPLITS = {"test": "test", "train": "train", "labelled": "train"}


class Questions(NamedTuple):
    """The questions of a benchmark, and the pool of shots."""

    name: str  # Name of the benchmark. Another pool of shots has another name
    test: list[Item]  # Questions to ask
    pool: list[Item]  # Items that may be shots, sorted by id, without questions of the test
    num_left_out: int  # Number of items that were removed from the pool because they are in the test
    num_repeats: int = 0  # Number of repeated items that were removed from the pool
    source: str | None = None  # Name of the data set of the hub; None for published files and embedded questions


def read_questions(benchmark: str, pool: str, bench: Path | None, cache: Path, hub: HubSet | None = None) -> Questions:
    """Return the questions and the pool of shots of a benchmark.

    Args:
        pool: train, or held_out for the last questions of the test, which are then not asked.
        bench: Folder with the published files; None if they are fetched.
        hub: Data set of the hub with the published columns, to be read instead of the files.

    Raises:
        InputError: If a file is missing or wrong.
    """

    def find(part: str) -> Path:
        forms = FILES[benchmark, part]
        if bench is None:
            return locate(forms[-1], None, cache)
        return locate(next((form for form in forms if (bench / form.name).is_file()), forms[0]), bench, cache)

    def read(part: str, *, may_repeat: bool = False) -> Part:
        records: Iterable[Row]
        if hub is not None:
            is_validation = (benchmark, part) == ("MedMCQA", "test")  # the test split has no answers
            split = "validation" if is_validation else SPLITS[part]
            table = open_table(hub, split)
            first, records = 0 if is_label(table, "cop") else 1, records_of(table, hub, split)
        else:
            file = find(part)
            first, records = 0 if file.name.lower().endswith(".parquet") else 1, read_file(file)
        if benchmark == "MedMCQA":
            return read_medmcqa(records, first, may_repeat=may_repeat)
        return read_medqa(records, 5 if benchmark == "MedQA-5" else 4, may_repeat=may_repeat)

    source = None if hub is None else str(hub)
    if benchmark == "PubMedQA":  # half of the labelled questions are not in the test and may be shots
        if hub is not None:
            split = SPLITS["labelled"]
            named, labelled = str(hub), pubmedqa_by_id(records_of(open_table(hub, split), hub, split))
        else:
            file = find("labelled")
            named, labelled = str(file), json_object(file)
        return _questions(benchmark, *read_pubmedqa(labelled, named, find("test")), source=source)
    test = read("test").rows
    if pool == "held_out":
        if len(test) <= HELD_OUT:
            raise InputError(f"suite.pool=held_out: {benchmark} has {len(test)} questions, expected over {HELD_OUT}")
        name = f"{benchmark}, last {HELD_OUT} as shots"
        return _questions(name, test[:-HELD_OUT], test[-HELD_OUT:], source=source)
    try:
        train = read("train", may_repeat=True)
    except InputError as error:
        raise InputError(
            f"{error}; it has the shots of {benchmark}. suite.pool=held_out takes shots from the last {HELD_OUT} "
            f"test questions, which are then not asked"
        ) from None
    return _questions(benchmark, test, *train, source=source)


def _questions(
    name: str, test: list[Item], pool: Sequence[Item], num_repeats: int = 0, *, source: str | None
) -> Questions:
    allowed = sorted(without_those_of(pool, test), key=lambda item: item.id)
    return Questions(name, test, allowed, len(pool) - len(allowed), num_repeats, source)
