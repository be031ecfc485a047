"""suite=human builds pages from two files of answers and scores their judgments; errors are one line."""

import json
from pathlib import Path

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.human import suite as human
from sftmix.evaluation.results import Evaluation
from sftmix.evaluation.session import Session


@pytest.fixture
def files(tmp_path):
    """Answers of two models to six instructions, in other orders."""
    rows = [{"instruction": f"instruction {i}", "output": f"{i}", "generator": "ours"} for i in range(6)]
    theirs = [{**row, "output": row["output"] + "!", "generator": "theirs"} for row in rows]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text(json.dumps(theirs[::-1]))
    return tmp_path / "a.json", tmp_path / "b.json"


@pytest.fixture
def session_of(compose_eval, tmp_path):
    """A function that gives a call of eval.py with its suite's settings."""

    def session(*overrides):
        config = compose_eval("suite=human", f"root={tmp_path / 'runs'}", *overrides)
        return Session(config, None), config.suite

    return session


def call(session, suite):
    human.check(session, suite)
    return human.evaluate(session, suite)


def downloaded(tmp_path, folder, annotator, choose, number=None):
    """What an annotator would send back who chooses by whose answer is on the left."""
    key = json.loads((folder / "key.json").read_text())
    sha256, page = next((s, p) for s, p in key["pages"].items() if p["annotator"] == annotator)
    rows = [{"id": i, "choice": choose(side), "ms": 2000} for i, side in page["left"].items()]
    file = tmp_path / f"judged-{annotator}.json"
    file.write_text(json.dumps({"page_sha256": sha256, "annotator": annotator, "judgments": rows[:number]}))
    return file


def test_pages_are_built_and_what_they_download_is_scored(files, session_of, tmp_path, capsys):
    a, b = files
    assert call(*session_of("bench=demo", f"a={a}", f"b={b}", "suite.annotators=2")) == []
    said = capsys.readouterr().out
    assert "ours against theirs: 6 instructions, 2 annotators" in said
    (folder,) = (tmp_path / "runs" / "human").iterdir()
    assert folder.name.startswith("ours-vs-theirs-")
    assert {f.name for f in folder.iterdir()} == {"annotator-1.html", "annotator-2.html", "key.json"}

    first = downloaded(tmp_path, folder, 1, lambda left: "left" if left == "a" else "right")  # a wins always
    second = downloaded(tmp_path, folder, 2, lambda left: "tie", 3)
    assert call(*session_of(f"suite.judgments=[{first},{second}]")) == []
    said = capsys.readouterr().out
    assert "ours against theirs: 9 judgments of 6 instructions" in said
    assert "annotator 1: 6 of 6, annotator 2: 3 of 6" in said
    assert " 66.7% [" in said
    assert "agreement: Krippendorff's alpha" in said
    content = json.loads((folder / "human--demo--people--round1.json").read_text())
    found = Evaluation(**content)
    assert found.scores == pytest.approx({"win": 200 / 3, "tie": 100 / 3, "lose": 0, "lead": 200 / 3})
    for column, score in found.scores.items():
        assert sum(found.questions[column].values()) / len(found.questions[column]) == pytest.approx(score)
    assert found.counts == {"judgments": 9, "questions": 6, "judged_by_several": 3}


def test_too_few_judgments_are_reported(files, session_of, tmp_path, capsys):
    call(*session_of("bench=demo", f"a={files[0]}", f"b={files[1]}"))
    (folder,) = (tmp_path / "runs" / "human").iterdir()
    one = downloaded(tmp_path, folder, 1, lambda left: "left", 1)
    call(*session_of(f"suite.judgments=[{one}]"))
    said = capsys.readouterr().out
    assert "1 judgment of 1 instruction\n" in said
    assert "verdict on ours against theirs: no clear difference (1 example, at least 20 are needed)" in said
    assert "no instruction was judged by several" in said


def test_the_published_answers_make_pages_of_80(session_of, shared, tmp_path):
    bench = shared / "data" / "bench"
    a, b = (bench / "alpaca_eval" / f"{name}_outputs.json" for name in ("gpt4_1106_preview", "vicuna-7b-v1.5"))
    call(*session_of(f"bench={bench}", f"a={a}", f"b={b}", "limit=7"))
    call(*session_of(f"bench={bench}", f"a={a}", f"b={b}"))
    sizes = [len(json.loads(f.read_text())["items"]) for f in (tmp_path / "runs" / "human").glob("*/key.json")]
    assert sorted(sizes) == [7, 80]
    key = next(
        f for f in (tmp_path / "runs" / "human").glob("*/key.json") if len(json.loads(f.read_text())["items"]) == 7
    )
    part = downloaded(tmp_path, key.parent, 1, lambda left: "left")
    call(*session_of(f"suite.judgments=[{part}]"))
    assert (key.parent / "human--vicuna_first_7_of_80--people--round1.json").is_file()


def test_a_dry_run_builds_nothing(files, session_of, tmp_path, capsys):
    call(*session_of("bench=demo", f"a={files[0]}", f"b={files[1]}", "dry_run=true", "suite.annotators=3"))
    assert "18 judgments by people" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "human").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["bench=demo", "a={a}", "b={tmp}/absent.json"], r"b=.*absent\.json: cannot be read \(No such file"),
        (["bench=demo", "a={a}", "b={tmp}/answers.csv"], r"b=.*answers\.csv: no such folder"),
        (["bench=demo", "a={a}", "b={a}"], "all 6 answers of the two models are equal"),
        (["bench={tmp}", "a={a}", "b={b}"], r"bench=.*: gpt4_1106_preview_outputs\.json is not in this folder"),
        (["suite.judgments=[{tmp}/absent.json]"], r"suite\.judgments: .*absent\.json: no such file"),
        (["suite.judgments=[{a}]"], r"a\.json: has no page_sha256, expected a file that was downloaded"),
        (["suite.judgments=[]"], r"suite\.judgments=\[\]: expected at least one file"),
        (["suite.judgments=[{a}]", "a={a}"], r"a=.*: suite\.judgments name their pages"),
        (["suite.judgments=[{a}]", "limit=3"], r"limit=3: suite\.judgments name their pages"),
    ],
)
def test_what_is_missing_is_one_line_before_anything_is_built(overrides, says, files, session_of, tmp_path):
    filled = [o.format(a=files[0], b=files[1], tmp=tmp_path) for o in overrides]
    with pytest.raises(InputError, match=says) as raised:
        human.check(*session_of(*filled))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_runs_answer_the_embedded_instructions_and_are_judged(small_run, compose_eval, capsys):
    config, plan = small_run
    overrides = (f"root='{config.root}'", f"a='{plan.target.folder}'", f"b='{plan.baseline.folder}'")
    settings = compose_eval("suite=human", *overrides, "suite.max_new_tokens=24", "device=cpu", "progress_bar=false")
    session = Session(settings, None)
    assert call(session, settings.suite) == []
    said = capsys.readouterr().out
    assert f"{plan.target.folder.name} against {plan.baseline.folder.name}: 20 instructions" in said
    key = json.loads(next((Path(config.root) / "human").glob("*/key.json")).read_text())
    assert key["record"]["instructions"] == "demo"
