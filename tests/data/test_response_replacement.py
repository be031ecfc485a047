"""Table 4's two qualities: joined on instruction and input, no instruction in both groups."""

import pytest

from sftmix.data import census as reasons
from sftmix.data.census import Census
from sftmix.data.reader import ExampleReader
from sftmix.data.response_replacement import ReplacementResponses, is_chosen
from sftmix.data.rows import Row
from sftmix.data.sources import read_file
from sftmix.errors import InputError


def rows(*fields, source="f"):
    return [Row(f"{source}, row {i}", i, f, source) for i, f in enumerate(fields, start=1)]


def alpaca(instruction, given, output):
    return {"instruction": instruction, "input": given, "output": output}


INSTRUCTIONS = [f"Do {i}." for i in range(200)]
HIGH = [i for i in INSTRUCTIONS if is_chosen(i, 0.5)]


def joined(data, better, fraction=0.5):
    census, change = Census(), ReplacementResponses(rows(*better, source="better"), fraction)
    examples = [e for row in ExampleReader(census, change=change).read(rows(*data)) for e in row]
    return examples, census, change


def test_half_of_the_instructions_get_replaced_responses_in_any_order():
    data = [alpaca(i, given, "plain") for i in INSTRUCTIONS for given in ("", "x")]
    better = [alpaca(i, given, f"better {given}") for i in reversed(INSTRUCTIONS) for given in ("x", "")]
    examples, census, change = joined(data, better)
    assert 80 < len(HIGH) < 120
    assert len(examples) == 400
    assert change.num_joined == 2 * len(HIGH)
    for e in examples:
        instruction, given = e.messages[0].instruction, e.messages[0].input
        assert e.group == ("high" if instruction in HIGH else "low")
        assert e.response == (f"better {given}" if instruction in HIGH else "plain")
    assert not census.dropped


def test_a_chosen_row_without_a_replacement_is_dropped_and_never_in_group_low():
    data = [alpaca(i, given, "plain") for i in HIGH for given in ("", "x")]
    examples, census, _ = joined(data, [alpaca(i, "", "better") for i in HIGH])
    assert {e.group for e in examples} == {"high"}
    assert census.dropped[reasons.NO_REPLACEMENT].count == len(HIGH)


def test_a_source_without_responses_is_refused():
    with pytest.raises(InputError, match="no response in it"):
        ReplacementResponses(rows(alpaca("A", "", "")), 0.5)


def test_the_set_of_table_4_from_real_files(shared):
    """999 of Alpaca's instructions with GPT-4's responses: how many join, and the groups stay apart."""
    census = Census()
    change = ReplacementResponses(read_file(shared / "data/alpaca/alpaca_gpt4_demo_999.json"), 0.5)
    reader = ExampleReader(census, change=change)
    examples = [e for row in reader.read(read_file(shared / "data/alpaca/alpaca_data.json")) for e in row]
    high = {e.messages[0].instruction.strip() for e in examples if e.group == "high"}
    low = {e.messages[0].instruction.strip() for e in examples if e.group == "low"}
    assert high
    assert not high & low
    assert change.num_joined >= len(high)
    assert len(examples) + census.num_dropped == 52002


def test_replacement_rows_without_a_response_are_counted():
    better = [{"messages": []}, {"messages": 7}, {"messages": [{"role": "user", "content": "Do 1."}]}]
    answered = {
        "messages": [{"role": "user", "content": i} for i in HIGH[:1]] + [{"role": "assistant", "content": "b"}]
    }
    change = ReplacementResponses(rows(*better, answered, source="better"), 0.5)
    assert change.num_unread == 3


def test_of_two_replacements_for_a_prompt_the_first_counts():
    twice = [alpaca(HIGH[0], "", output) for output in ("first", "second", "first")]
    other = next(i for i in INSTRUCTIONS if i not in HIGH)
    unasked = [alpaca(other, "", output) for output in ("a", "b")]
    (example, *_), _, change = joined([alpaca(HIGH[0], "", "plain")], [*twice, *unasked])
    assert example.response == "first"
    assert change.num_later == 1


def test_a_dialogue_that_ends_with_the_user_keeps_that_turn():
    """Its last turn is not a response, so nothing is replaced."""
    turns = [{"role": r, "content": c} for r, c in (("user", HIGH[0]), ("assistant", "A"), ("user", "Thanks."))]
    better = [{"messages": [*turns[:2], {"role": "assistant", "content": "better"}]}]
    examples, census, change = joined([{"messages": turns}], better)
    assert (examples, change.num_joined) == ([], 0)
    assert census.dropped[reasons.NO_REPLACEMENT].count == 1
