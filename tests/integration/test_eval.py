"""eval.py says what it can do, and what is wrong or lacking in one line."""

import subprocess
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from sftmix.cli.program import explain_composition
from sftmix.errors import ConfigError
from sftmix.evaluation.schema import SUITES, schema_of


@pytest.fixture
def run(light_programs):
    """Run eval.py."""

    def ran(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return light_programs.run("eval.py", *arguments, cwd=cwd)

    return ran


def test_without_arguments_the_usage_is_printed(run, tmp_path):
    done = run(cwd=tmp_path)
    assert done.returncode == 0
    for suite in (*SUITES, "all"):
        assert f"suite={suite}" in done.stdout


def test_every_choice_of_a_suite_composes_and_checks(conf, compose_eval):
    assert {file.stem for file in (conf / "suite").glob("*.yaml")} == {*SUITES, "all"}
    for suite in (*SUITES, "all"):
        assert compose_eval(f"suite={suite}").suite.name == suite
    for judge in (conf / "judge").glob("*.yaml"):
        needs = ["judge.model=m"] if judge.stem == "openai_compatible" else []
        config = compose_eval("suite=mt_bench", f"judge={judge.stem}", *needs)
        assert (config.judge is None) == (judge.stem == "none")
    assert compose_eval("suite=mt_bench", "generate=openai", "generate.model=m").generate.backend == "openai"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["limit=3"], "config error: suite has no value, expected suite=alpaca_eval, human, "),
        (["suite=mt_benc"], "config error: suite=mt_benc: no such choice, expected one of all, alpaca_eval"),
        (["suite=mt_bench", "suite.roundss=3"], "config error: suite.roundss=3: no such key, did you mean rounds?"),
        (["suite=mt_bench", "judge.model=m"], "config error: judge.model=m: there is no judge, choose judge=fake"),
        (["suite=medical", "seed=5"], "config error: seed=5: suite medical does not read it here"),
        (["suite=medical", "run=no/such/folder"], "error: run=no/such/folder: no such folder"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(run, arguments, says, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(says), done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["suite=mt_bench", "suite.rounds=0"], "suite.rounds=0: expected at least 1"),
        (["suite=mt_bench", "limt=3"], "limt=3: no such key, did you mean limit?"),
        (["suite=mt_bench", "judge=openai_compatible"], "judge.model has no value"),
        (
            ["suite=medical", "suite.benchmarks=[PubMedQA,PubMedQA]"],
            "suite.benchmarks=['PubMedQA', 'PubMedQA']: expected some of MedQA, MedQA-5, PubMedQA, MedMCQA, each once",
        ),
        (
            ["suite=medical", "suite.hub={MedQ: a/b}"],
            "suite.hub={'MedQ': 'a/b'}: expected a data set for some of MedQA, MedQA-5, PubMedQA, MedMCQA",
        ),
    ],
)
def test_the_error_on_an_invalid_value_names_its_key(compose_eval, arguments, says):
    with pytest.raises((ConfigError, ConfigCompositionException)) as error:
        compose_eval(*arguments)
    told = error.value
    line = str(told) if isinstance(told, ConfigError) else explain_composition(told, arguments, schema_of("mt_bench"))
    assert line.startswith(says)
