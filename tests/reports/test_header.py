"""The heads of the ablations' files are what the data file of the paper's values says."""

import re

import pytest

from paths import CONF
from sftmix.reports.header import fill, header
from sftmix.reports.tables.paper import read_paper

FOLDER = CONF / "ablation"
TABLES = read_paper().tables


@pytest.mark.parametrize("name", TABLES)
def test_a_file_has_the_papers_claim_and_values(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    assert header(TABLES[name]) in text, "make headers"
    assert fill(text, TABLES[name]) == text
    assert text.startswith(f"# @package _global_\n# Table {TABLES[name].number}: ")


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
