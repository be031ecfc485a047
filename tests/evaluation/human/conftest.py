"""Pairs of answers, some hostile, and the file that an annotator's page downloads."""

import json

import pytest

from sftmix.evaluation.human.annotator_page import Comparison, build_pages

HOSTILE = (
    "</script><img src=x onerror=\"document.title='taken'\">",
    "<!--<script>document.title='taken'</script>-->",
    "{{ 7 * 7 }} {% raw %} ${7*7} __DATA__ __POLICY__",
    "\u202eright to left\u202c \u2066isolated\u2069 \u200b",
    "line\u2028separators\u2029 \x00 \x1b[31m &lt;b&gt; \\u003c \ud800",
)


@pytest.fixture
def pairs():
    """Twelve; the first five are hostile in each of their texts, the last has an answer of blanks only."""
    hostile = [Comparison(f"{i}: {text}", f"a {text}", f"b {text}") for i, text in enumerate(HOSTILE)]
    plain = [Comparison(f"instruction {i}", f"answer {i} of a", f"answer {i} of b") for i in range(5, 11)]
    return [*hostile, *plain, Comparison("instruction 11", "answer 11 of a", " \n ")]


@pytest.fixture
def folder(tmp_path, pairs):
    """Two pages over these pairs, with their key."""
    root = tmp_path / "human"
    return build_pages(root, pairs, names=("sftmix", "ntp"), annotators=2, seed=0, record={"instructions": "demo"})


@pytest.fixture
def judged(tmp_path, folder):
    """A function that writes what an annotator's page would download: outcomes of a (win, tie, lose) in key order."""
    key = json.loads((folder / "key.json").read_text())

    def write(annotator, outcomes, name=None, /, **changed):
        sha256, page = next((s, p) for s, p in key["pages"].items() if p["annotator"] == annotator)
        rows = []
        for item, outcome in zip(key["items"], outcomes, strict=False):
            side = "left" if (outcome == "win") == (page["left"][item] == "a") else "right"
            rows.append({"id": item, "choice": "tie" if outcome == "tie" else side, "ms": 1000 * (1 + len(rows))})
        content = {"page_sha256": sha256, "annotator": annotator, "judgments": rows, **changed}
        file = tmp_path / (name or f"judgments-annotator-{annotator}.json")
        file.write_text(json.dumps(content))
        return file

    return write
