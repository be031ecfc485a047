"""suite=alpaca_eval from the command line's settings to its results."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from loopback import WITHOUT_LOGPROBS, loopback
from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.embedded import embedded_baseline
from sftmix.evaluation.alpaca_eval.outputs import read_outputs, write_outputs
from sftmix.evaluation.results import read_evaluations
from sftmix.evaluation.run import run_suites

NAMES = {
    "annotations": "vicuna-7b-v1.5_annotations.json",
    "outputs": "vicuna-7b-v1.5_outputs.json",
    "baseline": "gpt4_1106_preview_outputs.json",
    "gamed": "df_gamed_equivalent.csv",
}
TEMPLATE = "<|im_start|>user\n{instruction}\nm: {output_1}\nM: {output_2}\n<|im_end|>"


@pytest.fixture
def files(shared) -> dict[str, Path]:
    return {key: shared / "data" / "bench" / "alpaca_eval" / name for key, name in NAMES.items()}


@pytest.fixture
def evaluated(compose_eval, tmp_path):
    def run(*overrides: str) -> None:
        run_suites(
            compose_eval("suite=alpaca_eval", f"root={tmp_path / 'runs'}", "progress_bar=false", *map(str, overrides))
        )

    return run


@pytest.fixture
def outputs(tmp_path) -> Path:
    """Other answers to the embedded questions, in another order."""
    answers = [o._replace(output=f"{o.output} Yes.", generator="a model") for o in embedded_baseline()]
    write_outputs(tmp_path / "o.json", random.Random(0).sample(answers, len(answers)))
    return tmp_path / "o.json"


def results(tmp_path: Path):
    (folder,) = (tmp_path / "runs" / "evaluated").iterdir()
    return folder, read_evaluations(folder)


def test_published_preferences_are_scored_again_without_a_model_or_a_call(evaluated, files, tmp_path, capsys):
    evaluated(*(f"suite.{key}={file}" for key, file in files.items()))
    win, lc = capsys.readouterr().out.splitlines()
    assert win == "win_rate 4.7975 (standard error 0.6656, n 805)"
    assert lc.startswith("lc_win_rate ")
    assert float(lc.split()[1]) == pytest.approx(7.6169, abs=0.02)
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_the_order_of_the_files_changes_nothing(evaluated, files, tmp_path, capsys):
    for key in ("annotations", "outputs"):
        records = json.loads(files[key].read_text(encoding="utf-8"))
        random.Random(1).shuffle(records)
        files[key] = tmp_path / f"{key}.json"
        files[key].write_text(json.dumps(records))
    evaluated(*(f"suite.{key}={file}" for key, file in files.items()))
    win, lc = capsys.readouterr().out.splitlines()
    assert float(win.split()[1]) == 4.7975
    assert float(lc.split()[1]) == pytest.approx(7.6169, abs=0.02)


def test_without_the_gamed_rows_the_win_rate_is_given_and_the_other_refused(evaluated, files, capsys):
    evaluated(f"suite.annotations={files['annotations']}", f"suite.baseline={files['baseline']}", "suite.gamed=no.csv")
    win, lc = capsys.readouterr().out.splitlines()
    assert win.startswith("win_rate 4.7975 ")
    assert lc == "lc_win_rate refused: suite.gamed=no.csv: no such file, expected df_gamed.csv"


def test_where_it_is_not_known_which_question_is_which_no_length_is_controlled(evaluated, files, capsys):
    evaluated(f"suite.annotations={files['annotations']}", f"suite.gamed={files['gamed']}")
    win, lc = capsys.readouterr().out.splitlines()
    assert win.startswith("win_rate 4.7975 ")
    assert "does not number the questions; suite.baseline=FILE" in lc


def test_preferences_that_are_missing_are_counted_and_of_fewer_questions_no_length_is_controlled(
    evaluated, files, tmp_path, capsys
):
    records = json.loads(files["annotations"].read_text(encoding="utf-8"))[:600]
    for record in records[:100]:
        record["preference"] = None
    (tmp_path / "a.json").write_text(json.dumps(records))
    evaluated(f"suite.annotations={tmp_path / 'a.json'}", *(f"suite.{k}={files[k]}" for k in ("baseline", "gamed")))
    win, lc = capsys.readouterr().out.splitlines()
    assert win.endswith("n 500, 500 of 600 judged)")
    assert lc == "lc_win_rate refused: its constants need all 805 questions, here are 600"


def test_both_rates_of_a_part_of_the_preferences_say_how_many_there_are(evaluated, files, tmp_path, capsys):
    records = json.loads(files["annotations"].read_text(encoding="utf-8"))
    for record in records[:150]:
        record["preference"] = None
    (tmp_path / "a.json").write_text(json.dumps(records))
    evaluated(f"suite.annotations={tmp_path / 'a.json'}", *(f"suite.{k}={files[k]}" for k in ("baseline", "gamed")))
    win, lc = capsys.readouterr().out.splitlines()
    assert win.endswith(", n 655, 655 of 805 judged)")
    assert lc.startswith("lc_win_rate ")
    assert lc.endswith(", n 805, 655 of 805 judged)")


@pytest.mark.parametrize(
    ("changes", "here"),
    [
        ({"annotator": "gpt-4.1"}, "gpt-4.1"),
        ({"annotator": "weighted_alpaca_eval_gpt-4o-mini-2024-07-18"}, "weighted_alpaca_eval_gpt-4o-mini-2024-07-18"),
        ({"served_model": "gpt-4.1-2025-04-14"}, "gpt-4.1-2025-04-14"),
        ({"annotator": "ours", "served_model": "gpt-4-1106-preview"}, None),
        ({"annotator": "alpaca_eval_gpt4_turbo_fn"}, None),
    ],
)
def test_preferences_of_another_judge_say_that_the_length_control_is_approximate(
    changes, here, evaluated, files, tmp_path, capsys
):
    records = json.loads(files["annotations"].read_text(encoding="utf-8"))
    (tmp_path / "a.json").write_text(json.dumps([record | changes for record in records]))
    evaluated(f"suite.annotations={tmp_path / 'a.json'}", *(f"suite.{k}={files[k]}" for k in ("baseline", "gamed")))
    _, _, *notes = capsys.readouterr().out.splitlines()
    said = f"LC WR is approximate: its constants were estimated with the judge gpt-4-turbo, here the judge is {here}"
    assert notes == ([said] if here else [])


def test_answers_of_a_file_are_judged_and_kept_beside_their_author(evaluated, outputs, tmp_path, capsys):
    evaluated(f"suite.outputs={outputs}", "bench=demo", "judge=fake")
    assert "LC WR       refused: its constants need all 805 questions, here are 20" in capsys.readouterr().out
    folder, (found,) = results(tmp_path)
    assert folder.name.startswith("a_model-")
    assert (found.suite, found.judge, found.benchmark, found.round) == ("alpaca_eval", "fake", "demo", 1)
    assert set(found.scores) == {"WR"}
    assert found.scores["WR"] == pytest.approx(np.mean(list(found.questions["WR"].values())))
    assert found.counts == {"questions": 20, "missing": 0, "identical": 0}
    assert found.record["served_models"] == ["fake"]
    assert len(found.settings["template_sha256"]) == 64
    again = folder / "evaluation" / "alpaca_eval" / "annotations--demo--fake--round1.json"
    capsys.readouterr()
    evaluated(f"suite.annotations={again}", f"suite.outputs={outputs}")
    assert capsys.readouterr().out.startswith(f"win_rate {found.scores['WR']:.4f} ")


def test_one_question_has_no_standard_error_and_the_record_is_plain_json(evaluated, outputs, tmp_path, capsys):
    evaluated(f"suite.outputs={outputs}", "bench=demo", "judge=fake", "limit=1")
    folder, (found,) = results(tmp_path)
    assert found.record["standard_errors"] == {"WR": None}
    (file,) = (folder / "evaluation").glob("*.json")
    assert "NaN" not in file.read_text()
    assert re.search(r"round 1 +WR [\d.]+ \(n 1\)\n", capsys.readouterr().out)


def test_answers_with_control_tokens_are_counted_and_the_count_is_shown(evaluated, outputs, tmp_path, capsys):
    answers = read_outputs(outputs)
    write_outputs(outputs, [o._replace(output=f"{o.output}<|eot_id|>") for o in answers[:3]] + answers[3:])
    evaluated(f"suite.outputs={outputs}", "bench=demo", "judge=fake")
    _, (found,) = results(tmp_path)
    assert found.counts["holds_special"] == 3
    said = capsys.readouterr().out
    counts = said[said.index("counts, over all rounds") :]
    assert "holds special" in counts
    assert re.search(r"demo .* 3\n", counts)


def test_the_first_questions_are_another_benchmark(evaluated, outputs, tmp_path):
    evaluated(f"suite.outputs={outputs}", "bench=demo", "judge=fake", "limit=3")
    _, (found,) = results(tmp_path)
    assert found.benchmark == "demo, first 3 of 20"
    assert list(found.questions["WR"]) == ["0", "1", "2"]


def test_all_805_real_answers_are_judged_with_both_win_rates(evaluated, files, tmp_path, shared):
    (tmp_path / "t.txt").write_text(TEMPLATE)
    bench = shared / "data" / "bench"
    evaluated(f"suite.outputs={files['outputs']}", f"bench={bench}", f"suite.prompt={tmp_path / 't.txt'}", "judge=fake")
    _, (found,) = results(tmp_path)
    assert found.benchmark == "AlpacaEval-2"
    assert found.counts["questions"] == len(found.questions["WR"]) == len(found.questions["LC WR"]) == 805
    assert found.counts["identical"] == 3
    assert 45 < found.scores["WR"] < 55
    assert found.scores["LC WR"] == pytest.approx(np.mean(list(found.questions["LC WR"].values())))
    assert "estimated with the judge gpt-4-turbo" in found.record["note"]


def test_a_judge_without_log_probabilities_is_an_error_and_nothing_is_counted(evaluated, outputs, tmp_path):
    with loopback(lambda place, body: WITHOUT_LOGPROBS) as server:
        settings = ("judge=openai_compatible", "judge.model=m", f"judge.base_url={server.base_url}")
        few = ("judge.max_retries=0", "limit=2", "bench=demo", f"suite.outputs={outputs}")
        with pytest.raises(InputError, match=r"judge m: .* without log-probabilities.*run the same command again"):
            evaluated(*settings, *few)
    assert not list((tmp_path / "runs" / "evaluated").glob("*/evaluation/*.json"))


def test_a_real_client_brings_the_preferences_of_the_replies(evaluated, outputs, tmp_path):
    with loopback() as server:
        settings = ("judge=openai_compatible", "judge.model=m", f"judge.base_url={server.base_url}")
        for _ in range(2):
            evaluated(*settings, "bench=demo", f"suite.outputs={outputs}")
        assert len(server.bodies) == 20, "the second time everything is there"
    assert {(b["max_tokens"], b["temperature"], b["top_logprobs"]) for b in server.bodies} == {(1, 1.0, 5)}
    _, (found,) = results(tmp_path)
    assert found.record["served_models"] == ["loopback-2026-01-01"]
    assert len(set(found.questions["WR"].values())) > 10


@pytest.mark.parametrize("scoring", ["vote", "single"])
def test_replies_in_letters_are_counted_too(scoring, evaluated, outputs, tmp_path):
    evaluated(f"suite.outputs={outputs}", "bench=demo", "judge=fake", f"suite.scoring={scoring}")
    _, (found,) = results(tmp_path)
    shares = {0, 100} if scoring == "single" else {0, 20, 40, 60, 80, 100}
    assert {round(x, 6) for x in found.questions["WR"].values()} <= shares


def test_a_dry_run_prints_the_cost_and_asks_nothing(evaluated, outputs, tmp_path, capsys):
    evaluated(f"suite.outputs={outputs}", "bench=demo", "judge=fake", "dry_run=true")
    assert "alpaca_eval: judge fake: 20 calls, about " in capsys.readouterr().out
    assert not list((tmp_path / "runs" / "evaluated").glob("*/evaluation/*.json"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["suite.annotations=no.json"], "no.json: cannot be read"),
        (["suite.annotations=no.json", "limit=3"], "limit=3: suite.annotations are scored as they are"),
        (["suite.outputs=no.json", "bench=demo", "judge=fake"], "no.json: cannot be read"),
        (
            ["suite.outputs=OUTPUTS", "judge=fake", "bench=EMPTY"],
            r"gpt4_1106_preview_outputs.json is not in this folder",
        ),
        (["suite.outputs=OUTPUTS", "judge=fake", "bench=demo", "suite.prompt=no.txt"], "no.txt: cannot be read"),
        (["suite.outputs=OUTPUTS", "bench=demo"], "judge=none: suite=alpaca_eval needs a judge"),
    ],
)
def test_what_is_missing_is_one_line_before_anything_is_asked(overrides, says, evaluated, outputs, tmp_path):
    (tmp_path / "empty").mkdir()
    given = [o.replace("OUTPUTS", str(outputs)).replace("EMPTY", str(tmp_path / "empty")) for o in overrides]
    with pytest.raises(InputError, match=says) as caught:
        evaluated(*given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_run_answers_round_by_round_and_is_not_asked_twice(small_run, compose_eval, capsys, tmp_path):
    run = shutil.copytree(small_run[1].target.folder, tmp_path / "run")
    settings = ("suite=alpaca_eval", f"root={tmp_path}", f"run={run}", "judge=fake", "progress_bar=false")
    few = ("suite.rounds=2", "suite.max_new_tokens=8", "limit=4", "device=cpu")

    def dry_run(*changes):
        capsys.readouterr()
        run_suites(compose_eval(*settings, *few, "dry_run=true", *changes))
        return capsys.readouterr().out

    lacking = "answers     8 of 8 do not exist yet: the baseline's lengths are assumed\n"
    assert f"{lacking}alpaca_eval: judge fake: 8 calls, " in dry_run()
    for _ in range(2):
        run_suites(compose_eval(*settings, *few))
    said = dry_run()
    assert "alpaca_eval: judge fake: 0 calls (8 more have replies already)" in said
    assert "not there yet" not in said
    assert "model  " not in said, "no model is loaded"
    for changes in ("seed=7", "generate.template=zephyr", "suite.temperature=0.5", "generate.dtype=bfloat16"):
        assert f"{lacking}alpaca_eval: judge fake: 8 calls, " in dry_run(changes)
    found = [e for e in read_evaluations(run) if e.suite == "alpaca_eval"]
    assert [(e.benchmark, e.round, e.counts["questions"]) for e in found] == [
        ("demo, first 4 of 20", 1, 4),
        ("demo, first 4 of 20", 2, 4),
    ]
    assert found[0].settings["answers"]["temperature"] == 0.7
    folder = run / "evaluation" / "alpaca_eval"
    (answers,) = folder.glob("answers-*.jsonl")
    assert len(answers.read_text().splitlines()) == 8
    first, second = (read_outputs(folder / f"outputs--demo_first_4_of_20--round{r}.json") for r in (1, 2))
    assert [o.instruction for o in first] == [o.instruction for o in second]
    assert [o.output for o in first] != [o.output for o in second]
