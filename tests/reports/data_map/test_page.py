"""The data map as a file: what is in it, what may run in it, and what is refused."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest

from scored import Row, write_first_epoch_run, write_scored_run
from sftmix.errors import InputError
from sftmix.reports.data_map import page
from sftmix.reports.data_map.page import write_map
from sftmix.reports.package_files import asset

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>__TEXTS__\u202e\u05e9\u05dc\u05d5\u05dd \U0001f600"
)
ROWS = [
    Row(HOSTILE, HOSTILE, (2.0, 4.0), group=HOSTILE, source="</script>", subset="confident"),
    Row("b", "", (8.0, float("inf")), subset="unconfident"),
    Row("c", "x" * 1_000_000, (2.0, 3.0), subset=None, part="val"),
]


def block(html, name):
    found = re.findall(rf'<script type="[^"]*" id="{name}">(.*?)</script>', html, re.DOTALL)
    assert len(found) == 1
    return found[0]


def meta_of(html):
    return json.loads(block(html, "meta"))


def test_texts_cannot_leave_their_blocks(tmp_path):
    written = write_scored_run(tmp_path, ROWS)
    map_of_run = write_map(written.run, tmp_path)
    assert map_of_run.file == tmp_path / "reports" / f"{written.run.name}-map.html"
    html = map_of_run.file.read_text(encoding="ascii")
    assert html.count("</script>") == html.count("<script") == 5
    assert "onerror" not in html.replace(block(html, "meta"), "")
    meta = meta_of(html)
    assert meta["categories"]["group"] == ["", HOSTILE]
    assert meta["examples"] == 3
    assert meta["notes"] == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert map_of_run.in_words.startswith("3 examples, 0.")


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("train.py data=own data/select=random data.select.k=9 mode=confidence seed=1", "train.py data=own seed=1"),
        ("train.py --config-file one.json", "train.py ..."),
        (None, "train.py ..."),
    ],
)
def test_the_command_to_train_on_a_selection_replaces_the_selection_of_the_run(tmp_path, recorded, shown):
    run = write_scored_run(tmp_path, ROWS, command=recorded and recorded.split()).run
    assert meta_of(write_map(run, tmp_path).file.read_text())["command"] == f"python {shown} data/select=ids"


def test_only_the_script_and_style_of_the_page_may_run(tmp_path):
    html = write_map(write_scored_run(tmp_path, ROWS).run, tmp_path).file.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert " style=" not in html.replace(script, "")  # the policy would block it
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "fetch("):
        assert sink not in script


def test_the_points_are_ready_before_anything_is_unpacked(tmp_path):
    html = write_map(write_scored_run(tmp_path, ROWS).run, tmp_path).file.read_text()
    marks = ['id="meta"', 'id="points-data"', "<script>", 'id="columns-data"', 'id="texts-data"']
    places = [html.index(mark) for mark in marks]
    assert places == sorted(places)
    points = np.frombuffer(base64.b64decode(block(html, "points-data")), np.float32, 6)
    np.testing.assert_allclose(points[:3], [-3, -np.inf, -2.5])


def test_texts_that_are_gone_or_shortened_are_reported(tmp_path, capsys):
    rows = [Row("q" * 400, "r" * 10, (2.0,)), Row("b", "c", (3.0,))]
    written = write_map(write_scored_run(tmp_path / "gone", rows, prepared=False).run, tmp_path / "gone")
    gone = "of 1 example only the first 300 characters of each text are shown: the prepared data of the run is gone"
    assert meta_of(written.file.read_text())["notes"] == [gone]
    assert written.in_words.endswith(f" MB; {gone}")
    generator = np.random.default_rng(0)
    noise = ["".join(map(chr, generator.integers(33, 127, 900))) for _ in range(9)]
    run = write_scored_run(tmp_path / "large", [Row(text[:9], text, (2.0,)) for text in noise]).run
    written = write_map(run, tmp_path / "large", budget=4000)
    assert "texts of 9 examples are shortened to 250 characters, to keep the page small" in written.in_words


@pytest.mark.parametrize("rows", [ROWS[:1], [Row(str(k), "r", (3.0, 3.0)) for k in range(5)], [ROWS[1]]])
def test_one_example_and_equal_confidences_have_a_page(tmp_path, rows):
    meta = meta_of(write_map(write_scored_run(tmp_path, rows).run, tmp_path).file.read_text())
    assert meta["examples"] == len(rows)
    assert meta["rho"]["all"] is None


def test_perplexities_beyond_single_precision_are_infinite(tmp_path):
    html = write_map(write_scored_run(tmp_path, [Row("a", "b", (1e100, 2.0))]).run, tmp_path).file.read_text()
    points = np.frombuffer(base64.b64decode(block(html, "points-data")), np.float32, 2)
    assert points.tolist() == [-np.inf, np.inf]


def test_ranks_of_a_first_epoch_have_a_linear_scale(tmp_path):
    rows = [Row("Name it", answer, (perplexity,)) for answer, perplexity in (("a", 3.0), ("b", 4.0), ("c", 9.0))]
    html = write_map(write_first_epoch_run(tmp_path, rows, (0.9, 0.5, 0.1)), tmp_path).file.read_text()
    meta = meta_of(html)
    assert meta["has_ranks"] is True
    assert meta["repeated"]["groups"] == [[0, 1, 2]]
    assert not meta_of(write_map(write_scored_run(tmp_path, rows).run, tmp_path).file.read_text())["has_ranks"]


def test_a_folder_of_scores_has_a_page_without_subsets(tmp_path):
    meta = meta_of(write_map(write_scored_run(tmp_path, ROWS[1:2]).confidence, tmp_path).file.read_text())
    assert set(meta["categories"]) == {"source", "part"}


def test_the_output_is_neither_a_folder_nor_in_an_artifact(tmp_path):
    run = write_scored_run(tmp_path, ROWS).run
    with pytest.raises(InputError, match=r"output=.*: is a folder, expected the name of a file"):
        write_map(run, tmp_path, tmp_path)
    with pytest.raises(InputError, match=rf"output=.*x.html: is inside {run.name}, whose files do not change"):
        write_map(run, tmp_path, run / "x.html")
    chosen = tmp_path / "new" / "x.html"
    assert write_map(run, tmp_path, chosen).file == chosen
    assert chosen.is_file()


def test_assets_are_ascii():
    for name in ("map.html", "map.css", *(f"{script}.js" for script in page.SCRIPTS)):
        assert asset("sftmix.reports.data_map", name).isascii()
