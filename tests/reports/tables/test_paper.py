"""The paper's values are those of the shared list, and the files of the ablations show them."""

import re

import pytest

from ablation_headers import fill, header
from paths import CONF, SHARED
from sftmix.reports.tables.paper import read_paper

FOLDER = CONF / "ablation"
TABLES = read_paper().tables
LISTED = SHARED / "design" / "paper.md"


def cell(text: str) -> float | None:
    return None if text == "?" else float(text)


@pytest.fixture(scope="module")
def listed() -> dict[int, list[list[float | None]]]:
    """The rows of each table, as the list has them, `a / b` cells (with / without Mixup) taken apart."""
    if not LISTED.is_file():
        pytest.skip(f"{LISTED} is absent")
    tables: dict[int, list[list[float | None]]] = {}
    number = 0
    for line in LISTED.read_text().splitlines():
        if found := re.match(r"## Table (\d+),", line):
            number = int(found.group(1))
        if not line.startswith("|") or re.match(r"\|[-|]+\|$", line):
            continue
        cells = [part.strip() for part in line.strip().strip("|").split("|")]
        if found := re.match(r"(\d) ", cells[0]):
            number = int(found.group(1))
        values = cells[3:] if number == 1 else cells[1:] if number == 2 else cells[2:]
        if not all(re.fullmatch(r"[?\d./ ]+", value) for value in values):
            continue  # the head of a table
        split = [value.split(" / ") if "/" in value else [value] * 2 for value in values]
        pairs = [[cell(s[k]) for s in split] for k in (0, 1)]
        if number == 6:
            pairs.reverse()  # ours has the row without Mixup first
        one_row = not any("/" in value for value in values)
        tables.setdefault(number, []).extend(pairs[:1] if one_row else pairs)
    return tables


def test_every_number_is_the_papers(listed):
    tables = {table.number: table for table in TABLES.values() if table.number is not None}
    assert set(tables) == set(listed) == set(range(1, 10))
    for number, rows in listed.items():
        assert [list(row.values) for row in tables[number].rows] == rows, f"Table {number}"
    assert sum(len(rows) for rows in listed.values()) == 8 + 11 + 2 + 3 + 4 + 6 + 4 + 2 + 3


def test_the_values_of_the_final_version_are_named_as_such():
    table = TABLES["main_v4"]
    values = {row.label: row.values for row in table.rows}
    assert values == {"NTP": (6.1930, 7.0764, 13.9508), "SFTMix": (6.5247, 7.8810, 15.0235)}
    assert table.columns == ("overall", "WR", "LC WR")
    assert {name: t.version for name, t in TABLES.items() if t.version} == {"main_v4": "v4, ACL 2026"}
    assert (table.name_in_paper, read_paper().version_of(table)) == ("Table ?", "v4, ACL 2026")


def test_a_gap_in_the_list_is_a_gap_here(listed):
    table = read_paper().tables["ntp_subset"]
    known = {(row.group, row.label): row.values for row in table.rows}
    assert known["unconfident", "no Mixup"] == (None, None, 4.2778, None, 7.9889)
    assert known["unconfident", "Mixup"] == (None, None, 4.5425, None, 8.9392)
    assert read_paper().tables["selection"].rows[3].values == (None, None, 4.6212, None, None)


def test_means_are_those_of_their_columns():
    """Where all parts are known: MT-Bench's overall is the mean of two turns, Table 2's mean that of four columns."""
    checked = 0
    for table in read_paper().tables.values():
        for row in table.rows:
            if table.name == "healthcare":
                assert row.values[4] == pytest.approx(sum(row.values[:4]) / 4, abs=0.011), row
                checked += 1
            elif table.columns[0] == "ST" and None not in row.values[:2]:
                assert row.values[2] == pytest.approx(sum(row.values[:2]) / 2, abs=0.0006), row
                checked += 1
    assert checked > 25


def test_every_column_is_of_a_suite_and_every_row_says_what_runs_it():
    paper = read_paper()
    for table in paper.tables.values():
        assert all(paper.suite_of(column) for column in table.columns)
        assert len({row.when for row in table.rows if row.when}) == len([row for row in table.rows if row.when])
        assert set(table.model) <= set(paper.models)
        assert set(table.data) <= set(paper.data)


def test_the_papers_settings_are_those_of_the_configuration(compose):
    from sftmix.config.schema import to_dict

    paper = read_paper()
    for name, epochs in paper.epochs.items():
        config = to_dict(compose("model=llama", f"data={name}"))
        assert config["data"]["epochs"] == epochs
        for key, value in paper.settings.items():
            found = config
            for part in key.split("."):
                found = found[part]
            assert found == value, key


def test_the_papers_judge_is_known_by_its_names():
    suites = read_paper().suites
    assert suites["mt_bench"].has_judge("gpt-4-0613")
    assert not suites["mt_bench"].has_judge("gpt-4o-2024-08-06")
    assert not suites["mt_bench"].has_judge(None)
    assert suites["medical"].has_judge(None)
    assert not suites["medical"].has_judge("gpt-4")


@pytest.mark.parametrize("name", TABLES)
def test_a_file_has_the_papers_claim_and_values(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    assert header(TABLES[name]) in text, "make headers"
    assert fill(text, TABLES[name]) == text
    assert text.startswith(f"# @package _global_\n# {TABLES[name].name_in_paper}: ")


def test_the_values_are_those_of_the_table():
    lines = [line for line in header(TABLES["mu"]).splitlines() if " mu 0." in line]
    assert [re.findall(r"\d+\.\d{4}", line) for line in lines] == [
        ["5.0600", "4.0238", "4.5419", "4.7715", "10.0172"],
        ["5.2125", "3.9525", "4.5825", "4.9031", "10.3195"],
        ["4.9606", "3.8968", "4.4287", "4.5092", "9.5034"],
    ]
    assert header(TABLES["main"]).count("?") == 6
    assert max(map(len, header(TABLES["healthcare"]).splitlines())) <= 120


def test_other_files_have_no_values():
    others = [file for file in FOLDER.glob("*.yaml") if file.stem not in TABLES]
    assert len(others) >= 8
    assert not any(re.search(r"\d\.\d{4}", file.read_text()) for file in others)
