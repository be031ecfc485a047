"""The paper's tables with ours beside them: every figure is one that was worked out by hand, or by numpy."""

import re
import shlex

import pytest
import yaml

from sftmix.artifacts.files import write_json
from sftmix.errors import ConfigError, InputError
from sftmix.provenance.runs import damage_of
from sftmix.reports.tables.groups import ntp_command
from sftmix.reports.tables.paper import read_paper
from table_cells import cells, written


def test_table_9_has_the_papers_values_and_ours(mu_sweep):
    found = cells(mu_sweep, "mu")
    paper = read_paper().tables["mu"]
    for row in paper.rows:
        for column, value in zip(paper.columns, row.values, strict=True):
            assert float(found["Scores", f"{row.label} / paper", column]["value"]) == value
    loss = found["Held-out loss", "mu 0.1", "all"]  # seeds: (10 + 40 + 60 + 80) / 100 and (12 + 40 + 60 + 100) / 100
    assert float(loss["value"]) == pytest.approx(2.01)
    assert float(loss["sd"]) == pytest.approx(0.22 / 2**0.5)
    assert (loss["n"], loss["text"]) == ("2", "2.0100 ± 0.1556")
    confident = found["Held-out loss", "mu 0.1", "confident subset"]  # (10 + 40) / 30 and (12 + 40) / 30
    assert float(confident["value"]) == pytest.approx(51 / 30)
    unconfident = found["Held-out loss", "mu 0.1", "unconfident subset"]  # (60 + 80) / 70 and (60 + 100) / 70
    assert float(unconfident["value"]) == pytest.approx(150 / 70)
    perplexity = found["Held-out perplexity", "mu 0.1", "all"]
    assert float(perplexity["value"]) == pytest.approx((2.718281828459045**1.9 + 2.718281828459045**2.12) / 2)
    difference = found["Held-out loss", "mu 0.1", "minus NTP [95%]"]  # 1.9 - 2.0 and 2.12 - 2.2
    assert float(difference["value"]) == pytest.approx(-0.09)
    assert float(difference["sd"]) == pytest.approx(0.02 / 2**0.5)
    assert float(difference["low"]) < -0.09 < float(difference["high"])
    assert found["Held-out loss", "mu 0.1", "examples"]["value"] == "4"


def test_the_best_are_marked_and_only_they(mu_sweep):
    found = cells(mu_sweep, "mu")
    best = {key for key, row in found.items() if row["best"]}
    assert best == {
        ("Scores", "mu 0.2 / paper", "ST"),
        ("Scores", "mu 0.1 / paper", "MT"),
        ("Scores", "mu 0.2 / paper", "overall"),
        ("Scores", "mu 0.2 / paper", "WR"),
        ("Scores", "mu 0.2 / paper", "LC WR"),
        ("Held-out loss", "mu 0.2", "all"),
        ("Held-out loss", "mu 0.1", "confident subset"),
        ("Held-out loss", "mu 0.2", "unconfident subset"),
        ("Held-out perplexity", "mu 0.2", "all"),
        ("Held-out perplexity", "mu 0.1", "confident subset"),
        ("Held-out perplexity", "mu 0.2", "unconfident subset"),
    }


def test_what_was_not_run_says_its_command_and_what_failed_its_cause(mu_sweep):
    text = written(mu_sweep, "mu")
    assert "seed=1 not run: python train.py model=tiny data=demo recipe.mixup.mu=0.2 seed=1" in text
    assert re.search(r"mu 0.5 +failed \[2\]", text)
    assert "[2] failed: out of memory (log: logs/3.txt); again: python train.py model=tiny" in text
    assert text.count("not evaluated") == 10, "two rows that ran, five columns"


def test_a_run_is_done_by_its_folder_not_by_what_was_written_of_its_job(mu_sweep):
    mu_sweep.run("mu0.5-0", 1.5)
    text = written(mu_sweep, "mu")
    assert "out of memory" not in text
    assert "1.5000*" in text
    (mu_sweep.root / "mu0.1-0" / "manifest.json").unlink()
    assert cells(mu_sweep, "mu")["Held-out loss", "mu 0.1", "all"]["text"] == "2.1200"


def test_a_toy_run_is_said_not_to_be_the_papers(mu_sweep):
    head = written(mu_sweep, "mu").split("\n\n")[0]
    assert "arXiv 2410.05248, the version before its ACL 2026 one" in head
    assert "paper: Llama-3.1-8B on Alpaca-52K; MT-Bench by GPT-4, means of 5 rounds" in head
    assert "ours: data=demo model=tiny" in head
    for said in ("model tiny (paper: Llama-3.1-8B)", "data demo (paper: Alpaca-52K)", "model.lr 0.001 (paper: 2e-06)"):
        assert said in head
    assert "NOT THE PAPER'S: " in head
    assert "recipe.mixup.mu" not in head, "the table varies it"


def test_the_papers_own_settings_are_not_said_to_differ(made):
    config = {
        "model": {"name": "llama", "lr": 2e-6},
        "data": {"name": "alpaca", "epochs": 3, "val_fraction": 0.0, "limit": None},
        "optimizer": {"weight_decay": 0.1},
        "scheduler": {"warmup_ratio": 0.1},
        "recipe": {
            "global_batch_size": 32,
            "mixup": {"mu": 0.1, "alpha": 0.5},
        },
    }
    made.run("one", 2.0, config=config)
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "one")], common=())
    assert "ours: the paper's model, data and settings" in written(made, "mu")
    config["data"] = {**config["data"], "limit": 500, "epochs": 1}
    made.run("one", 2.0, config=config)
    assert "NOT THE PAPER'S: data.limit 500 (paper: all); data.epochs 1 on alpaca (paper: 3)" in written(made, "mu")


def test_without_a_sweep_the_paper_stands_alone_with_commands_that_compose(made, compose):
    for name, published in read_paper().tables.items():
        text = written(made, name)
        assert f"{published.name_in_paper}, {published.title}" in text
        assert "ours: not run" in text
        commands = re.findall(r"not run: (python train.py .*)", text)
        assert commands
        for command in commands:
            assert f"ablation={name}" in command
        if published.is_list:
            assert commands == [f"python train.py ablation={name}"]
    command = re.findall(r"\[1\] not run: (.*)", written(made, "mu", given=["model=tiny", "data=demo"]))[0]
    assert command == "python train.py ablation=mu model=tiny data=demo recipe.mixup.mu=0.1"
    config = compose(*shlex.split(command)[2:])
    assert (config.recipe.mixup.mu, config.model.name) == (0.1, "tiny")


def test_a_gap_in_the_papers_table_is_a_question_mark(made):
    found = cells(made, "main")
    assert found["Scores", "Alpaca-52K, Mistral / NTP / paper", "ST"]["text"] == "?"
    assert found["Scores", "Alpaca-52K, Mistral / NTP / paper", "ST"]["note"] == "unknown in our copy of the table"
    assert found["Scores", "Alpaca-52K, Mistral / NTP / paper", "overall"]["text"] == "4.6163"


def test_rows_that_are_none_of_the_papers_are_appended(made):
    made.run("ntp", 2.0, halves=None)
    made.run("sftmix", 1.9)
    rows = [made.row(["recipe=ntp"], "ntp"), made.row(["recipe=sftmix"], "sftmix")]
    made.sweep("main", rows)
    found = cells(made, "main")
    assert found["Held-out loss", "beside the paper's rows / recipe=sftmix", "all"]["text"] == "1.9000"
    assert found["Held-out loss", "beside the paper's rows / recipe=ntp", "minus NTP [95%]"]["text"] == "is NTP"
    row = "Alpaca-52K, Llama / SFTMix"
    command = "not run: python train.py ablation=main model=llama data=alpaca recipe=sftmix"
    assert found["Held-out loss", row, "all"]["note"] == command
    assert "the subsets of recipe=ntp are by the split of recipe=sftmix" in written(made, "main")


def test_a_row_that_was_set_on_the_command_line_is_found_by_what_is_common(made):
    made.run("ntp", 2.0, halves=None)
    made.run("one", 1.9)
    made.sweep("main", [made.row(["recipe=sftmix"], "one")], common=("model=llama", "data=alpaca"))
    found = cells(made, "main")
    assert found["Held-out loss", "Alpaca-52K, Llama / SFTMix", "all"]["text"] == "1.9000"
    assert not any("beside" in row for _, row, _ in found)


def test_values_written_otherwise_are_the_same_row(made):
    made.run("one", 1.9)
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.10"], "one")])
    assert cells(made, "mu")["Held-out loss", "mu 0.1", "all"]["text"] == "1.9000"


def test_subsets_are_only_by_confidence(made):
    by_length = {"split": {"by": "length"}}
    made.run("ntp", 2.0, halves=None)
    made.run("one", 1.9, config=by_length)
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "one")])
    found = cells(made, "mu")
    assert found["Held-out loss", "mu 0.1", "all"]["text"] == "1.9000"
    assert found["Held-out loss", "mu 0.1", "confident subset"]["text"] == ""


def test_losses_over_other_examples_have_no_best(made):
    """Table 4: its first row holds out examples of one group alone."""
    made.run("ntp", 2.0, halves=None)
    made.run("high", 1.0, val={"a": 10, "b": 20}, halves=None)
    rows = [
        made.row(["recipe=ntp", "data.groups=[high]"], "high", "high"),
        made.row(["recipe=ntp", "data.groups=null"], "ntp"),
    ]
    made.sweep("quality", rows)
    found = cells(made, "quality")
    assert found["Held-out loss", "High, no Mixup", "all"]["text"] == "1.0000"
    assert not any(row["best"] for (title, _, _), row in found.items() if title == "Held-out loss")
    assert "values over other examples than the rest of their group have no best" in written(made, "quality")


def test_other_settings_are_other_tables_and_a_filter_takes_one(made):
    for name in ("one", "two"):
        made.run(name, 1.9)
    made.run("ntp", 2.0, halves=None)
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "one")])
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "two")], common=("model=llama", "trainer=cpu"), tail="ffffffff")
    text = written(made, "mu")
    assert text.count("Table 9") == 2
    assert "ours: model=llama\n" in text
    assert written(made, "mu", given=["model=llama"]).count("Table 9") == 1
    none = written(made, "mu", given=["model=qwen"])
    assert "no sweep of mu has model=qwen; there are sweeps with data=demo model=tiny; model=llama" in none


def test_a_run_in_two_sweeps_counts_once(mu_sweep):
    rows = [mu_sweep.row(["recipe.mixup.mu=0.1", "seed=0"], "mu0.1-0", "ntp-0")]
    mu_sweep.sweep("mu", rows, common=("data=demo", "model=tiny"), tail="ffffffff")
    found = cells(mu_sweep, "mu")
    assert found["Held-out loss", "mu 0.1", "all"]["n"] == "2"


def test_beyond_the_paper_the_table_is_ours_alone(made):
    assert "not run: python train.py ablation=alpha" in written(made, "alpha", ablations=["alpha"])
    made.run("ntp", 2.0, halves=None)
    made.run("one", 1.9)
    made.sweep("alpha", [made.row(["recipe.mixup.alpha=0.1"], "one")])
    text = written(made, "alpha")
    assert text.startswith("Ablation alpha, beyond the paper")
    assert "Scores" not in text
    assert re.search(r"recipe.mixup.alpha=0.1 +1.9000", text)


def test_an_unknown_table_is_told_with_those_there_are(made):
    with pytest.raises(
        ConfigError, match=r"table=nosuch: no such table, expected one of main, main_v4, healthcare, .*, alpha"
    ):
        written(made, "nosuch", ablations=["alpha"])
    with pytest.raises(ConfigError, match="format=pdf: expected one of text, markdown, latex, csv"):
        written(made, "mu", "pdf")


def test_the_baseline_that_is_not_there_says_its_command(made, compose):
    made.run("one", 1.9)
    row = made.row(["model@reference.model=gemma"], "one", "nowhere")
    row["command"] = (
        "python train.py model=tiny data=demo recipe=sftmix optimizer.lr=0.01 recipe.mixup.mu=0.1 "
        "recipe.ntp.on=confident "
        "model@reference.model=tiny reference.model.lr=0.1 reference.num_checkpoints=2 confidence.use=1 seed=1"
    )
    made.sweep("weak_reference", [row])
    note = cells(made, "weak_reference")["Held-out loss", "weaker LLM (Gemma-2B)", "minus NTP [95%]"]["note"]
    command = "python train.py model=tiny data=demo optimizer.lr=0.01 reference.num_checkpoints=2 seed=1 recipe=ntp"
    assert note == f"NTP not run: {command}"
    assert compose(*shlex.split(command)[2:]).recipe.name == "ntp"
    assert ntp_command("python train.py 'data.path=a b.json'") == "python train.py 'data.path=a b.json' recipe=ntp"


def test_nothing_held_out_is_said(made):
    made.run("ntp", 2.0, val={}, halves=None)
    made.run("one", 1.9, val={}, halves=None)
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "one")])
    assert re.search(r"mu 0.1 +nothing held out", written(made, "mu"))


def test_torn_and_foreign_files_are_one_line_each(made):
    made.run("ntp", 2.0, halves=None)
    made.run("one", 1.9)
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "one")])
    torn = made.sweep("mu", [], tail="eeeeeeee")
    (torn / "manifest.json").write_text('{"name": "mu", "ro')
    foreign = made.sweep("mu", [], tail="dddddddd")
    write_json(foreign / "manifest.json", {"title": "sftmix-tiny", "fields": {}})
    outside = made.sweep("mu", [made.row(["a=1"], "../../etc")], tail="cccccccc")
    text = written(made, "mu")
    left_out = [line for line in text.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 3
    assert any(str(torn) in line and "cannot be read" in line for line in left_out)
    assert any(str(foreign) in line and "not the manifest of a sweep (no name" in line for line in left_out)
    assert any(str(outside) in line and "is not the name of a folder" in line for line in left_out)
    made.evaluate("one", "mt_bench", 1, {"ST": float("nan")})
    with pytest.raises(InputError, match=r"mt_bench.*\.json: is not an evaluation"):
        written(made, "mu")


def test_text_from_files_is_text_in_every_form(made):
    evil = "\x1b[2J<b>|*x*_$\\input{x}%`#&~^{}\nnext"
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "one", state="failed", cause=evil)])
    for form in ("text", "markdown", "latex", "csv"):
        assert "\x1b" not in written(made, "mu", form)
    text = written(made, "mu", "text")
    assert "[1] failed: \\x1b[2J<b>|*x*_$\\input{x}%`#&~^{}\\nnext (log" in text
    (line,) = [line for line in written(made, "mu", "markdown").splitlines() if "failed: " in line]
    assert r"\<b\>\|\*x\*\_\$" in line
    latex = written(made, "mu", "latex")
    (line,) = [line for line in latex.splitlines() if "failed: " in line]
    assert r"\textless{}b\textgreater{}\textbar{}*x*\_\$\textbackslash{}input\{x\}\%" in line


def balanced(tex: str) -> bool:
    """Whether braces close what they open, those that are escaped left out."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", tex):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def test_the_latex_has_no_bare_special_characters_and_rows_have_as_many_cells_as_columns(mu_sweep):
    for name in ("mu", "main", "healthcare", "selection"):
        latex = "\n".join(line for line in written(mu_sweep, name, "latex").splitlines() if not line.startswith("%"))
        assert balanced(latex)
        assert latex.isascii()
        assert not re.search(r"(?<!\\)[#_%^~]", latex)
        for spec, body in re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", latex, re.DOTALL):
            rows = [line for line in body.splitlines() if line.endswith(r"\\")]
            assert rows
            assert all(len(re.findall(r"(?<!\\)&", row)) == len(spec) - 1 for row in rows)
        assert latex.count(r"\begin{") == latex.count(r"\end{")


def test_the_markdown_tables_are_whole(mu_sweep):
    text = written(mu_sweep, "mu", "markdown")
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 3
    for part, bars in zip(tables, (8, 8, 5), strict=True):
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in part.splitlines()} == {bars}
    assert "**1.8000**" in text


def test_bold_is_the_terminals_own_where_it_can_be(mu_sweep):
    styled, plain = written(mu_sweep, "mu", styled=True), written(mu_sweep, "mu")
    assert "\x1b[1m" in styled
    assert "*" not in styled.split("\n\n", 1)[1].split("means ±")[0]
    assert "\x1b" not in plain


def test_the_rows_of_the_paper_are_rows_of_the_ablation(conf):
    """Each row that is run here names values that the ablation's file sweeps over."""
    for name, published in read_paper().tables.items():
        file = conf / "ablation" / f"{name}.yaml"
        if not file.is_file():
            continue
        sweeper = yaml.safe_load(file.read_text())["hydra"]["sweeper"]
        listed = {o.replace(" ", "") for row in sweeper.get("runs", []) for o in row}
        grid = {f"{key}={v}" for key, values in (sweeper.get("params") or {}).items() for v in str(values).split(",")}
        for row in published.rows:
            assert set(row.when or ()) <= listed | grid, (name, row.label)


@pytest.mark.parametrize("name", ["metrics.json", "run.json", "split.parquet", "val.parquet"])
def test_damage_of_each_file_that_a_table_reads_is_found_before_the_table_is_made(made, name):
    run = made.run("sftmix", 1.0)
    assert damage_of(run) is None
    (run / name).write_bytes(b"x")
    assert name in str(damage_of(run))
