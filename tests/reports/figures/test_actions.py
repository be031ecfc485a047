"""What report.py figure=, topics= and stability= read, and packages or scores that are missing."""

from importlib.util import find_spec

import pytest

from scored import Row, write_scored_run
from sftmix.artifacts.artifact import Artifact, making
from sftmix.artifacts.files import write_json
from sftmix.errors import InputError
from sftmix.reports.figures import scores
from sftmix.reports.figures.actions import draw

NOTHING = dict.fromkeys(("figure", "run", "k", "at", "by", "topics", "spacy", "labels", "stability"))


def asked(action, tmp_path, **values):
    return draw(action, {**NOTHING, **values}, None, tmp_path, show_progress=False)


def test_a_missing_package_is_one_line_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(scores, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    with pytest.raises(InputError, match=r"topics=x: needs scikit-learn: pip install 'sftmix\[figures\]'"):
        asked("topics", tmp_path, topics="x")


@pytest.mark.parametrize("k", [0, True, 2.5, "a"])
def test_k_is_a_number_of_examples(k, tmp_path):
    with pytest.raises(InputError, match=f"k={k}: expected a number of examples, at least 1"):
        asked("topics", tmp_path, topics="x", k=k)


def test_a_run_without_confidence_is_one_line(tmp_path):
    run = Artifact(tmp_path, "ntp-x", {"kind": "run", "data": {}, "seed": 0})
    with making(run) as folder:
        write_json(folder / "run.json", {"config": {}})
    for action, values in (
        ("figure", {"figure": "confidence", "run": str(run.folder)}),
        ("topics", {"topics": str(run.folder)}),
        ("stability", {"stability": [str(run.folder), "random"]}),
    ):
        with pytest.raises(InputError, match="has no confidence: it was not split by confidence"):
            asked(action, tmp_path, **values)


def test_each_report_is_written_under_the_root(tmp_path):
    rows = [Row(f"Say {k} words", "x", [k + 1.0, k + 2.5], group="AB"[k % 2]) for k in range(24)]
    name = write_scored_run(tmp_path, rows).run.name
    folders = [
        asked("figure", tmp_path, figure="confidence", run=name)[1],
        asked("topics", tmp_path, topics=name)[1],
        asked("stability", tmp_path, stability=[name])[1],
    ]
    assert [folder.name for folder in folders] == [f"figure3-{name}-group", f"topics-{name}", f"stability-{name}"]
    assert all(folder.parent == tmp_path / "reports" for folder in folders)
    assert all((folder / "numbers.json").is_file() for folder in folders)
