"""The four medical benchmarks: where their questions are published, and which of them may be shots."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.data.rows import Row
from sftmix.data.sources import read_file
from sftmix.errors import InputError
from sftmix.evaluation.medical.hub import HubSet, is_label, open_table, records_of
from sftmix.evaluation.medical.questions import (
    Item,
    Part,
    first_option,
    json_object,
    pubmedqa_by_id,
    read_medmcqa,
    read_medqa,
    read_pubmedqa,
    without_those_of,
)
from sftmix.evaluation.published import Published, locate

HELD_OUT = 200  # of the last test questions, where a person chooses to take shots from there

_HUB = "https://huggingface.co/datasets"
_MEDQA_HOME = "https://github.com/jind11/MedQA"
_MEDMCQA_HOME = "https://github.com/medmcqa/medmcqa"
_MEDQA = f"{_HUB}/GBaker/MedQA-USMLE-4-options/resolve/0fb93dd23a7339b6dcd27e241cb9b5eca62d4d18"
_MEDQA_5 = f"{_HUB}/bigbio/med_qa/resolve/e04abdc0672c54547fa1dbe36cfefc000e4f2657/med_qa_en_source"
_MEDMCQA = f"{_HUB}/openlifescienceai/medmcqa/resolve/91c6572c454088bf71b679ad90aa8dffcd0d5868/data"
_PUBMEDQA = "https://raw.githubusercontent.com/pubmedqa/pubmedqa/1f00b98d5cc626844bf8c4ca513b6e62c40071ec/data"

# Forms of one file, by (benchmark, part): the publishers' own first, the last is the one that can be fetched.
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

# Splits of the data sets on the hub, by the same. What of PubMedQA is its test stands in its own file alone.
SPLITS = {
    ("MedQA", "test"): "test",
    ("MedQA", "train"): "train",
    ("MedQA-5", "test"): "test",
    ("MedQA-5", "train"): "train",
    ("MedMCQA", "test"): "validation",  # its test has no answers
    ("MedMCQA", "train"): "train",
    ("PubMedQA", "labelled"): "train",
}


class Questions(NamedTuple):
    """What of a benchmark is asked, and what may be shown before.

    Attributes:
        name: of the benchmark; it says where shots are not from its train part.
        test: rows that are asked.
        pool: rows that may be shots, by their ids; none of them is of the test.
        num_left_out: rows of the pool that were questions of the test too.
        num_repeats: rows of the pool that stood there before.
        source: the data set that they are from; None: the published files, or embedded questions.
    """

    name: str
    test: list[Item]
    pool: list[Item]
    num_left_out: int
    num_repeats: int = 0
    source: str | None = None


def read_questions(benchmark: str, pool: str, bench: Path | None, cache: Path, hub: HubSet | None = None) -> Questions:
    """A benchmark's questions and the pool of its shots.

    Args:
        benchmark: MedQA, MedQA-5, MedMCQA or PubMedQA.
        pool: train, or held_out: the last questions of the test, which are then not asked.
        bench: folder with the published files; None: they are fetched.
        cache: folder of what was fetched.
        hub: rows in the published columns, instead of the files.

    Raises:
        InputError: a file is lacking or wrong.
    """

    def read(part: str, *, may_repeat: bool = False) -> Part:
        if hub is not None:
            return _of_hub(benchmark, hub, SPLITS[benchmark, part], may_repeat=may_repeat)
        return _of_file(benchmark, _find((benchmark, part), bench, cache), may_repeat=may_repeat)

    source = None if hub is None else str(hub)
    if benchmark == "PubMedQA":  # half of its labelled questions are no test
        if hub is not None:
            named, labelled = str(hub), _labelled_of_hub(hub)
        else:
            file = _find((benchmark, "labelled"), bench, cache)
            named, labelled = str(file), json_object(file)
        rows = read_pubmedqa(labelled, named, _find((benchmark, "test"), bench, cache))
        return _questions(benchmark, *rows, source=source)
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
            f"{error}; {benchmark}'s shots are from there. suite.pool=held_out takes them from the last {HELD_OUT} "
            f"test questions, which are then not asked"
        ) from None
    return _questions(benchmark, test, *train, source=source)


def _find(key: tuple[str, str], bench: Path | None, cache: Path) -> Path:
    forms = FILES[key]
    if bench is None:
        return locate(forms[-1], None, cache)
    there = [form for form in forms if (bench / form.name).is_file()]
    return locate((there or forms)[0], bench, cache)


def _of_file(benchmark: str, file: Path, *, may_repeat: bool) -> Part:
    return _part(benchmark, read_file(file), first_option(file), may_repeat=may_repeat)


def _of_hub(benchmark: str, hub: HubSet, split: str, *, may_repeat: bool) -> Part:
    table = open_table(hub, split)
    first = 0 if is_label(table, "cop") else 1
    return _part(benchmark, records_of(table, hub, split), first, may_repeat=may_repeat)


def _labelled_of_hub(hub: HubSet) -> dict[str, Any]:
    split = SPLITS["PubMedQA", "labelled"]
    return pubmedqa_by_id(records_of(open_table(hub, split), hub, split))


def _part(benchmark: str, records: Iterable[Row], first: int, *, may_repeat: bool) -> Part:
    if benchmark == "MedMCQA":
        return read_medmcqa(records, first, may_repeat=may_repeat)
    return read_medqa(records, 5 if benchmark == "MedQA-5" else 4, may_repeat=may_repeat)


def _questions(
    name: str, test: list[Item], pool: Sequence[Item], num_repeats: int = 0, *, source: str | None
) -> Questions:
    allowed = without_those_of(pool, test)
    pool_by_id = sorted(allowed, key=lambda row: row.id)
    return Questions(name, test, pool_by_id, len(pool) - len(allowed), num_repeats, source)
