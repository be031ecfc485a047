"""Published files are read whole: every row is an example or is counted as dropped."""

import pytest

from sftmix.data import census as reasons
from sftmix.data.census import Census
from sftmix.data.reader import ExampleReader, examples_from_rows
from sftmix.data.sources import read_file
from sftmix.errors import InputError


def test_the_whole_of_alpaca_is_accounted_for(shared):
    census = Census()
    rows = list(read_file(shared / "data/alpaca/alpaca_data.json"))
    found = examples_from_rows(rows, census)
    assert census.dropped[reasons.EMPTY_RESPONSE].count == 28
    assert len(found) + census.num_dropped == 52002
    assert census.num_dropped == census.rows["dropped"]
    assert sum("nooutput" in e.response.lower() for e in found) == 30, "kept: the census is no judge of what is said"
    assert sum(len(e.response.split()) <= 1 for e in found) == 2759 - 28
    assert sum(not row.fields["input"] for row in rows) == 31323
    assert sum(not e.messages[0].input for e in found) == 31311, "12 of the 28 that are dropped have no input"


def test_real_dialogues_are_expanded(shared):
    census = Census()
    found = examples_from_rows(read_file(shared / "data/multiturn/lima.jsonl"), census)
    assert len({e.dialogue for e in found}) + census.num_dropped == 1030
    assert len(found) > 1030
    assert max(len(e.messages) for e in found) == 19


def test_a_real_set_with_one_instruction_and_duplicates_is_accounted_for(shared):
    """MedAlpaca's slice: 92 rows appear twice, and 155 prompts have several answers, which are all kept."""
    census = Census()
    found = examples_from_rows(read_file(shared / "data/medical/medical_meadow_small.json"), census)
    assert census.dropped[reasons.DUPLICATE].count == 92
    assert len({e.messages[0].instruction for e in found}) == 1
    assert len({e.messages for e in found}) == 5942 - 155
    assert len(found) + census.num_dropped == 5942


def test_released_selections_are_dialogues_of_another_shape(shared):
    """ShareGPT's, with Alpaca's preamble inside the human turn: the index lists are what to use."""
    found, census = [], Census()
    reader = ExampleReader(census)
    for row in reader.read(read_file(shared / "data/selections/filtered_alpaca_1k_longest.json")):
        found += row
    assert dict(reader.num_rows) == {"conversations": 1000}
    assert len(found) == 1000
    assert all(e.instruction.startswith("Below is an instruction") for e in found)


@pytest.mark.parametrize(
    ("file", "number"), [("medical/chatdoctor5k.json", 5452), ("alpaca/alpaca_gpt4_demo_999.json", 999)]
)
def test_other_real_files_are_read_whole(shared, file, number):
    census = Census()
    found = examples_from_rows(read_file(shared / "data" / file), census)
    assert len(found) + census.num_dropped == number
    assert len(found) > 0.98 * number


def test_files_of_benchmarks_give_rows_or_one_line(shared):
    """Keyed objects, JSON lines, arrays and CSV as published. Only AlpacaEval's outputs have a known schema."""
    given = {}
    files = [f for f in sorted((shared / "data/bench").rglob("*")) if f.is_file()]
    for file in files:
        census = Census()
        try:
            found = examples_from_rows(read_file(file), census)
        except InputError as error:
            assert str(error).startswith(str(file)), file.name  # noqa: PT017 - it may be raised or not
            assert "\n" not in str(error)  # noqa: PT017
        else:
            given[file.name] = len(found) + census.num_dropped
    assert given == {"gpt4_1106_preview_outputs.json": 805, "vicuna-7b-v1.5_outputs.json": 805}
    assert len(files) == 12


def test_the_number_of_medmcqas_answer_is_left_as_it_is(shared):
    """`cop` counts the options from 1; no column is interpreted here: it is no text, and no index that is moved."""
    rows = list(read_file(shared / "data/bench/medmcqa_dev.jsonl"))
    assert len(rows) == 4183
    assert {row.fields["cop"] for row in rows} == {1, 2, 3, 4}
    census = Census()
    reader = ExampleReader(census, columns={"instruction": "question", "output": "cop"})
    assert list(reader.read(rows)) == []
    ((reason, dropped),) = census.dropped.items()
    assert reason.startswith(reasons.NOT_TEXT)
    assert dropped.count == 4183
    reader = ExampleReader(Census(), columns={"instruction": "question", "output": "opa"})
    first = next(reader.read(rows))[0]
    assert (first.instruction, first.response) == (rows[0].fields["question"], rows[0].fields["opa"])
