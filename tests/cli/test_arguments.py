"""Arguments before Hydra reads them: paths as they are, quotes that a shell and Hydra read back, options."""

import os
import re
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sftmix.cli.arguments import composed_by, read_arguments
from sftmix.config.fields import path_keys
from sftmix.config.schema import Config, ReportConfig
from sftmix.errors import ConfigError
from sftmix.evaluation.schema import SUITES, schema_of
from sftmix.quoting import hydra_value, shell_command, shell_word

NAMES = (
    "mu=0.5.json",
    "data (copy).json",
    "a[1].json",
    "{x}.json",
    "a,b.json",
    "#1.json",
    "it's.json",
    'say "hi".json',
    """it's "both".json""",
    "a&b;c.json",
    "$HOME.json",
    "${HOME}.json",
    r"back\slash.json",
    r"\${x}\.json",
    "*.json",
    "a: b.json",
    "~tilde.json",
    "-dash.json",
    "größe 日本.json",
    "two\nlines.json",
    "trailing ",
    " leading",
    "'quoted'",
    "123",
    "1e3",
    "True",
    "choice(a,b)",
    "end\\",
    "[a]",
)


def read(*arguments, schema=Config, sweeps=True):
    return read_arguments(arguments, schema, sweeps=sweeps)


def value_of(override):
    """The value that Hydra and OmegaConf make of an override."""
    parsed = OverridesParser.create().parse_override(override)
    assert not parsed.is_sweep_override()
    return OmegaConf.to_container(OmegaConf.create({"value": parsed.value()}), resolve=True)["value"]


def pasted(line):
    """The arguments that bash makes of a line."""
    show = f"{shell_word(sys.executable)} -c 'import os,sys; sys.stdout.buffer.write(os.fsencode(sys.argv[1]))' {line}"
    done = subprocess.run(["bash", "-c", show], capture_output=True, check=True)
    return os.fsdecode(done.stdout)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_taken_literally(here, name):
    (here / name).touch()
    for key in ("data.path", "+data.path", "++confidence.path"):
        for argument in ([f"{key}={name}"], ["-m", f"{key}={name}"]):
            override = read(*argument)[-1]
            assert override.startswith(f"{key}=")
            assert value_of(override) in (name, f"./{name}")
    for written in (f"[{name}]", f"[{name},nosuch]", f"[{here}/{name},{name}]"):
        first = value_of(read(f"confidence.checkpoints={written}")[-1])[0]
        assert first in (name, f"./{name}", f"{here}/{name}")
    assert value_of(read(f"suite.judgments=[{name}]", schema=schema_of("human"), sweeps=False)[-1])[0] in (
        name,
        f"./{name}",
    )


@pytest.mark.parametrize("name", ["${HOME}.json", "a=[1], 'b'.json", r"\${x}\.json", "~tilde.json", "two\nlines.json"])
def test_the_checked_configuration_has_the_path(here, compose, name):
    (here / name).touch()
    config = compose("data=own", *read(f"data.path={name}", f"confidence.checkpoints=[{name}]", "root=runs=1"))
    assert os.path.samefile(config.data.path, here / name)
    assert os.path.samefile(config.confidence.checkpoints[0], here / name)
    assert os.path.abspath(config.root) == str(here / "runs=1")
    from sftmix.config.schema import from_dict, to_dict

    assert from_dict(to_dict(config)) == config


def test_a_comma_is_no_sweep_where_it_is_part_of_a_name(here):
    for name in ("a,b", "c=1", "d"):
        (here / name).touch()
    assert read("-m", "data.path=a,b")[-1] == 'data.path="a,b"'
    assert read("-m", "data.path=a,b,c=1,d")[-1] == 'data.path="a,b","c=1",d'
    assert read("-m", "data.path=d,nosuch")[-1] == "data.path=d,nosuch"
    assert read("confidence.checkpoints=[a,b,d]")[-1] == 'confidence.checkpoints=["a,b",d]'
    assert read("-m", "confidence.checkpoints=[d],[c=1]")[-1] == 'confidence.checkpoints=[d],["c=1"]'


def test_the_home_folder_is_read_where_a_shell_did_not(here, monkeypatch, compose):
    (here / "my data (1).json").touch()
    monkeypatch.setenv("HOME", str(here))
    assert value_of(read("data.path=~/my data (1).json")[-1]) == f"{here}/my data (1).json"
    assert read("--config-dir", "~/x")[-1] == f"{here}/x"
    assert compose(*read("root=~/new (1)")).root == f"{here}/new (1)"
    assert compose(*read("root=~nosuchuser/new")).root == "./~nosuchuser/new"


@pytest.mark.parametrize(  # texts that are Hydra's quotes or references are read as such unless the folder exists
    "name", [name for name in (*NAMES, "runs of mine", "a/b=c") if "${" not in name and name != "'quoted'"]
)
def test_a_folder_that_is_to_be_made_may_have_any_name(here, compose, name):
    root = compose(*read(f"root={name}")).root
    assert root in (name, f"./{name}")


def test_hydras_own_syntax_still_works(here):
    assert read("root='a b'")[-1] == "root='a b'"
    assert read("root=${oc.env:HOME}/x")[-1] == "root=${oc.env:HOME}/x"
    assert read("data.path=null", "~logger")[-2:] == ["data.path=null", "~logger"]
    assert read("-m", "root=a,b")[-1] == "root=a,b"


@pytest.mark.parametrize(
    "argument",
    [
        "data.path=no(such).json",
        "data.path={a: b}",
        "data.path=it's",
        "model.path=a=b",
        "data.path=#1",
        "data.path=x)\t",
        "model.pad_token=<|end|>(",
        "model.pad_token=${x",
        "split.confident=a=b",
        "confidence.checkpoints=[a(,b c]",
        "data.select.path=é=\u200d",
    ],
)
def test_what_cannot_be_read_is_printed_as_it_must_be_quoted(here, argument):
    with pytest.raises(ConfigError) as error:
        read(argument)
    message = str(error.value)
    assert "http" not in message
    assert "\n" not in message
    override = pasted(re.search(r"quoted: (.*)$", message)[1])
    again = read(override)[-1]
    key, _, value = argument.partition("=")
    expected = value[1:-1].split(",") if value.startswith("[") else value
    assert again.startswith(f"{key}=")
    assert value_of(again) == expected


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_hydra_reads_back_every_text(text):
    assert value_of(f"key={hydra_value(text)}") == text
    assert value_of(f"key={hydra_value([text, 1.5, None, {'a': True}])}")[0] == text


def test_a_shell_reads_back_every_argument_with_few_quotes():
    words = [*NAMES, "\x1b[31m", "zero\u200dwidth", "!history", "`x`", "plain", ""]
    for start in range(0, len(words), 12):
        some = words[start : start + 12]
        show = f"{shell_word(sys.executable)} -c 'import sys; print(ascii(sys.argv[1:]))' {shell_command(some)}"
        done = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ascii(some)
    assert shell_word("data.path='a b'") == """"data.path='a b'\""""
    assert shell_word('data.path="a b"') == """'data.path="a b"'"""
    assert shell_word("a=1.json") == "a=1.json"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["hydra.run.dir=X"], "hydra.run.dir=X: this setting of Hydra has no effect here, root=FOLDER sets where"),
        (["hydra.sweep.dir=X"], "hydra.sweep.dir=X: this setting"),
        (["++hydra.output_subdir=.hydra"], "++hydra.output_subdir=.hydra: this setting"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true: this setting"),
        (["hydra.job.name=x"], "hydra.job.name=x: this setting"),
        (["hydra.verbose=true"], "hydra.verbose=true: this setting"),
        (["hydra={run: {dir: X}}"], "hydra={run: {dir: X}}: this setting"),
        (["hydra/job_logging=default"], "hydra/job_logging=default: this setting"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib: this setting of Hydra has no effect here, sweep=local and"),
        (["--resolve"], "--resolve: it only works with --cfg"),
        (["--package", "model"], "--package: it only works with --cfg"),
        (["-m", "--cfg", "job"], "--multirun and --cfg: expected one of them, without -m"),
        (["-m", "--info"], "--multirun and --info: expected one of them"),
        (["--experimental-rerun", "x.pickle"], "--experimental-rerun: it reads a pickle, use python report.py rerun="),
        (["--shell-completion"], "--shell-completion: expected install=bash, zsh or fish"),
        (["-sc", "query=bash"], "--shell-completion: expected install=bash"),
        (["--cfg", "nosuch"], "argument --cfg/-c: invalid choice: 'nosuch'"),
        (["--config-dir"], "argument --config-dir/-cd: expected one argument"),
        (["--nosuch"], "unrecognized arguments: --nosuch; --help explains the settings"),
        (["--seed=3"], "--seed=3: write seed=3, without --"),
        (["--data.limit=100"], "--data.limit=100: write data.limit=100, without --"),
        (["model"], "model: cannot be read, expected key=value"),
        (["=3"], "=3: cannot be read, expected key=value"),
    ],
)
def test_what_has_no_effect_is_refused(arguments, says, monkeypatch):
    monkeypatch.delenv("COMP_LINE", raising=False)
    with pytest.raises(ConfigError, match=re.escape(says)):
        read(*arguments)


def test_options_may_be_anywhere():
    assert read("seed=1", "--config-dir", "x", "seed=2", "-m") == ["-m", "--config-dir", "x", "seed=1", "seed=2"]
    assert read("--info", "seed=1") == ["--info", "all", "seed=1"]
    assert read("--cfg", "job", "--resolve", "-p", "model")[:1] == ["--resolve"]
    assert read("--hydra-help", "root=x") == ["--hydra-help"]
    given = ["-m", "--config-dir", "a b", "hydra.searchpath=[c]", "seed=1,2", "-cn", "own"]
    assert composed_by(read(*given)) == ["--config-dir", "a b", "--config-name", "own", "hydra.searchpath=[c]"]


def test_a_program_without_sweeps_refuses_them():
    with pytest.raises(ConfigError, match="-m: this program runs no sweeps"):
        read("-m", "seed=1", sweeps=False)
    with pytest.raises(ConfigError, match=r"hydra\.mode=MULTIRUN: this setting"):
        read("hydra.mode=MULTIRUN", sweeps=False)


def test_a_mapping_of_names_to_paths_is_read():
    schema = schema_of("offline")
    mapping = read("suite.sets={lima: a/lima.jsonl, gpt4: b.json}", schema=schema, sweeps=False)[0]
    assert value_of(mapping) == {"lima": "a/lima.jsonl", "gpt4": "b.json"}
    with pytest.raises(ConfigError, match=r"cannot be read, expected {NAME: VALUE}"):
        read("suite.sets={lima: a", schema=schema, sweeps=False)
    with pytest.raises(ConfigError, match=r"suite.sets=\[a.json\]: expected a mapping: 'suite.sets={NAME: VALUE}'"):
        read("suite.sets=[a.json]", schema=schema, sweeps=False)


def test_the_paths_of_a_mapping_may_hold_any_character(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ['it\'s a "list".json', "b, of [c].json", "ü.json"]
    for name in names:
        (tmp_path / name).touch()
    given = f"suite.sets={{a: {names[0]}, b: {names[1]},c: {names[2]}, d: ~/{names[2]}, e: ~/missing.json}}"
    mapping = value_of(read(given, schema=schema_of("offline"), sweeps=False)[0])
    homes = [str(tmp_path / names[2]), "~/missing.json"]
    assert mapping == dict(zip("abcde", [*names, *homes], strict=True))


def test_every_key_that_names_a_file_or_folder_is_marked():
    marked = path_keys(Config)
    assert {"root", "model.path", "reference.model.path", "data.path", "data.template", "data.select.path"} <= set(
        marked
    )
    assert marked["confidence.checkpoints"] == (False, list)
    assert marked["root"] == (True, None)
    assert marked["data.val_path"] == (False, object)
    assert {"rerun", "diff", "compare", "leaderboard"} <= set(path_keys(ReportConfig))
    of_suites = {key for suite in (*SUITES, "all") for key in path_keys(schema_of(suite))}
    names = "run a b bench root generate.template suite.judgments suite.as_fastchat suite.outputs suite.baseline"
    assert set(names.split()) <= of_suites
    assert {"suite.gamed", "suite.prompt", "suite.annotations", "suite.hub", "suite.template"} <= of_suites
    assert path_keys(schema_of("offline"))["suite.sets"] == (False, dict)
