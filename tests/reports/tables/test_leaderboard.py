"""The leaderboard of a sweep: its order, its differences and what became of the rest."""

import csv
import io

import pytest

from sftmix.artifacts.files import write_json
from sftmix.errors import InputError
from sftmix.reports.page import write_pages
from sftmix.reports.tables import leaderboard as ranking
from sftmix.sweep.store import read_sweep


def leaderboard(folder, form="text"):
    return write_pages([ranking.leaderboard(read_sweep(folder))], form)


def rows_of(folder):
    """The cells of the CSV form: rows in order, {column: cell}."""
    rows: dict[str, dict[str, dict[str, str]]] = {}
    for cell in csv.DictReader(io.StringIO(leaderboard(folder, "csv"))):
        rows.setdefault(cell["row"], {})[cell["column"]] = cell
    return rows


@pytest.fixture
def mixed(made):
    made.run("ntp-0", 2.0, halves=None, seconds=10)
    made.run("ntp-1", 2.2, halves=None, seconds=10)
    made.run("a-0", 1.9, seconds=20)
    made.run("a-1", 1.9, seconds=30)
    made.run("b-0", 1.7)
    rows = [
        made.row(["recipe=sftmix", "data.epochs=1", "seed=0"], "a-0", "ntp-0"),
        made.row(["recipe=sftmix", "data.epochs=1", "seed=1"], "a-1", "ntp-1"),
        made.row(["recipe=sftmix", "data.epochs=3", "seed=0"], "b-0", "ntp-0"),
        made.row(["recipe=sftmix", "data.epochs=3", "seed=1"], "b-1", "ntp-1", state="stopped"),
        made.row(["recipe=sftmix", "data.epochs=9", "seed=0"], "c-0", "ntp-0", state="failed", cause="no memory"),
    ]
    return made.sweep("sweep", rows)


def test_rows_stand_in_the_order_of_their_loss_and_are_called_what_varies(mixed):
    rows = rows_of(mixed)
    assert list(rows) == ["data.epochs=3", "data.epochs=1", "data.epochs=9"]
    best, second, failed = rows.values()
    assert best["held-out loss"]["best"] == "yes"
    assert second["held-out loss"]["best"] == ""
    assert (best["minus the best [95%]"]["text"], best["seeds"]["text"]) == ("best", "1 of 2")
    assert float(second["held-out loss"]["value"]) == pytest.approx(1.9)
    assert second["held-out loss"]["n"] == "2"
    assert float(second["minus NTP [95%]"]["value"]) == pytest.approx(-0.2)  # -0.1 and -0.3
    assert float(second["minus NTP [95%]"]["sd"]) == pytest.approx(0.2 / 2**0.5)
    assert float(second["minus the best [95%]"]["value"]) == pytest.approx(0.2)
    assert second["minus the best [95%]"]["n"] == "1", "the one seed that both have"
    assert float(second["seconds"]["value"]) == pytest.approx(25.0)
    assert second["state"]["text"] == "done"
    assert (best["state"]["text"], failed["state"]["text"]) == ("incomplete", "failed")
    assert "no memory" in failed["state"]["note"]
    assert "seed=1 not run: python train.py" in best["state"]["note"]


def test_the_text_says_what_was_run_and_how_much_of_it(mixed):
    text = leaderboard(mixed)
    assert text.startswith("sweep-0a1b2c3d: 3 of 5 runs done\n")
    assert "common: model=tiny data=demo" in text
    assert "no memory (log: logs/3.txt); again: python train.py model=tiny" in text


def test_a_shared_stage_that_failed_is_told(mixed):
    from sftmix.artifacts.manifest import read_json

    content = read_json(mixed / "manifest.json")
    job = {"command": "python train.py mode=confidence", "state": "failed", "cause": "disk full", "log": "logs/0.txt"}
    write_json(mixed / "manifest.json", {**content, "shared": [job, {**job, "state": "done", "cause": None}]})
    text = leaderboard(mixed)
    assert text.count("a shared stage failed: disk full (log: logs/0.txt); python train.py mode=confidence") == 1


def test_a_sweep_of_nothing_that_is_done_is_a_list_of_what_is_to_do(made):
    folder = made.sweep("sweep", [made.row(["seed=0"], "x", state="waiting")])
    (row,) = rows_of(folder).values()
    assert row["state"]["text"] == "not run"
    assert row["held-out loss"]["text"] == ""


def test_rows_over_other_examples_are_not_compared(made):
    made.run("ntp", 2.0, halves=None)
    made.run("x", 1.0, val={"a": 1}, halves=None)
    folder = made.sweep("sweep", [made.row(["a=1"], "x"), made.row(["a=2"], "ntp")])
    assert rows_of(folder)["a=2"]["minus the best [95%]"]["text"] == "other examples"
    assert rows_of(folder)["a=1"]["minus NTP [95%]"]["text"] == "none"
    assert "runs hold out different examples" in leaderboard(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, r"not a sweep, expected manifest\.json in this folder"),
        ("{", "cannot be read"),
        ("[1]", r"manifest\.json: is damaged: expected a JSON object"),
        ('{"title": "a run", "fields": {}}', r"not the manifest of a sweep \(no name"),
        ('{"name": "x", "command": "c", "common": [1], "runs": []}', "common holds something other than text"),
        ('{"name": "x", "command": "c", "common": [], "runs": [3], "shared": []}', "no state, or of another type"),
        ('{"name": "x", "command": "c", "common": [], "runs": [], "shared": [{}]}', "state"),
        ('{"name": "x", "command": "c", "common": [], "shared": []}', "no runs, or of another type"),
    ],
)
def test_what_is_no_sweep_is_one_clear_line(tmp_path, text, says):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=says) as error:
        read_sweep(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
