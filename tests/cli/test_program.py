"""The command as people call it: one line for what they can mend, before anything heavy is imported."""

import os
import signal
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

from paths import ROOT
from sftmix.cli.help import comments_of
from sftmix.config.schema import Config, ReportConfig
from sftmix.evaluation.schema import SUITES, schema_of

HEAVY = ("numpy", "torch", "lightning", "transformers", "datasets", "wandb")
LIGHT = f"""
import sys, runpy
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
finally:
    heavy = {set(HEAVY)} & set(sys.modules)
    assert not heavy, heavy
"""


def run(*arguments: str, script: str | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, *([str(ROOT / "train.py")] if script is None else ["-c", script])]
    return subprocess.run([*start, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["recipe.mixup.muu=1"],
            "config error: recipe.mixup.muu=1: no such key, did you mean mu? recipe.mixup has mu",
        ),
        (["recipe=ntp", "recipe.mixup.mu=0.5"], "config error: recipe.mixup.mu=0.5: recipe ntp has no Mixup"),
        (
            ["recipe=nosuch"],
            "config error: recipe=nosuch: no such choice, expected one of checkpoint_average, dft, eaft, ",
        ),
        (["recipe=mixup_alone"], "config error: recipe=mixup_alone: this choice is now recipe=mixup_only"),
        (["recipe.lr=1e-3"], "config error: recipe.lr=1e-3: this key is now optimizer.lr"),
        (["+recipe.lr=1e-3"], "config error: recipe.lr: this key is now optimizer.lr"),
        (["~recipe.betas"], "config error: ~recipe.betas: this key is now optimizer.betas"),
        (["recipe={warmup_ratio:0.2}"], "config error: recipe.warmup_ratio: this key is now scheduler.warmup_ratio"),
        (
            ["-m", "recipe.weight_decay=0,1"],
            "config error: recipe.weight_decay=0,1: this key is now optimizer.weight",
        ),
        (["seed=${recipe.lr}"], "config error: seed: ${recipe.lr}: this key is now optimizer.lr"),
        (["~recipe.nosuch"], "config error: ~recipe.nosuch: no such key, recipe has name, global_batch_size"),
        (
            ["ablation=nosuch"],
            "config error: ablation=nosuch: no such choice, expected one of alpha, controls, healthcare, ",
        ),
        (
            ["data/select=nosuch"],
            "config error: data/select=nosuch: no such choice, expected one of alpagasus, ids, ",
        ),
        (["data.select.k=5"], "config error: data.select.k=5: nothing is selected, choose data/select=longest"),
        (["model.lora.r=8"], "config error: model.lora.r=8: all weights are tuned, choose model/lora=default"),
        (
            ["model/lora=default", "reference.model.lora.r=8"],
            "config error: reference.model.lora.r=8: the reference follows the target's model, choose model/lora@refer",
        ),
        (["model/lora=nosuch"], "config error: model/lora=nosuch: no such choice, expected one of default, none"),
        (["--data.limit=100"], "config error: --data.limit=100: write data.limit=100, without --"),
        (
            ["recipe.mixup.mu=0.1,0.5"],
            "config error: recipe.mixup.mu=0.1,0.5: several values, add -m to sweep over them; one value with "
            "commas is quoted: 'recipe.mixup.mu=\"0.1,0.5\"'",
        ),
        (["data=own", "data.path=x(1).json"], "config error: data.path=x(1).json: no such file or folder, and Hydra"),
        (["hydra.run.dir=X"], "config error: hydra.run.dir=X: this setting of Hydra has no effect here, root=FOLDER"),
        (["--resolve"], "config error: --resolve: it only works with --cfg"),
        (["-m", "--cfg", "job"], "config error: --multirun and --cfg: expected one of them"),
        (["--nosuch"], "config error: unrecognized arguments: --nosuch"),
        (["--config-dir", "nosuch"], "config error: Additional config directory "),
        (["hydra.searchpath=[nosuch]"], "config error: hydra.searchpath: no such folder or package: nosuch"),
        (["--config-file"], "error: --config-file: expected one file, run.json of a run"),
        (["--config-file", "nosuch"], "error: --config-file nosuch: not the config of a run"),
        (["recipe=null"], "config error: Config group override must be a string or a list. Got NoneType"),
        (["recipe.mixup.mu=="], "config error: recipe.mixup.mu==: cannot be read, expected key=value"),
        (["nosuch=1"], "config error: nosuch=1: no such key, the configuration has mode, seed, root, model, "),
        (["+ablation=mu"], "config error: +ablation=...: write ablation=... without +"),
        (["-m", "recipe.mixup.muu=1,2"], "config error: recipe.mixup.muu=1,2: no such key, did you mean mu?"),
        (["data.epochs=many"], "config error: data.epochs=many: expected an integer"),
        (
            ["data.columns={question: instruction}"],
            "config error: data.columns.question: no such key, data.columns has instruction, input, output, prompt, "
            "completion, system, messages, conversations, group, weight; one of these comes first: 'data.columns={",
        ),
        (["data.columns={outptu: answer}"], "config error: data.columns.outptu: no such key, did you mean output?"),
        (["model=llama", "model.init.seed=3"], "config error: model.init.seed=3: model llama has no init"),
        (["data=alpaca", "data.path=/no/such.json"], "error: data.path=/no/such.json: no such file"),
        (["model=local", "model.path=/no/such"], "error: model.path=/no/such: no such folder"),
        (["logger=wandb", "logger.wandb.api_key=abc"], "config error: logger.wandb.api_key: the config takes no keys"),
        (["trainer=gpu"], "config error: trainer.accelerator=gpu: no CUDA device is visible"),
        (["confidence.path=/no/such.parquet"], "error: confidence.path=/no/such.parquet: no such file"),
    ],
)
def test_what_a_user_can_mend_is_one_line_before_anything_heavy(light_programs, arguments, says, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = light_programs.run("train.py", *arguments, "root=here", cwd=tmp_path, heavy=HEAVY)
    assert done.returncode == 2
    assert done.stderr.startswith(says), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert {f.name for f in tmp_path.iterdir()} <= {"here"}, "nothing is written beside the root"


def test_an_error_that_quotes_the_data_is_one_harmless_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"\\u001b[31mred\\n": 1}')
    done = run("data=own", "data.path=rows.jsonl", "root=here", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    assert "\\x1b[31mred\\n" in done.stderr


def test_help_explains_every_setting_and_hides_internal_ones():
    done = run("--help", script=LIGHT)
    assert (done.returncode, done.stderr) == (0, "")
    for group in ("model", "data", "recipe", "optimizer", "callbacks", "logger", "trainer", "ablation", "experiment"):
        assert f"\n  {group}: " in done.stdout
    assert (
        "  recipe.mixup.mu=0.2                     Weight of the Mixup term in the loss (at least 0)\n" in done.stdout
    )
    assert "  data.max_seq_len=128                    Longest example, prompt and response, in tokens" in done.stdout
    assert "  model.lora.r                            Rank of the adapters (at least 1)\n" in done.stdout
    assert "reference.model.*: the same settings as model.*" in done.stdout
    for hidden in (
        "_every,",
        "suite:",
        "generate:",
        "hydra/",
        "model.name",
        "data.mixture.sources",
        "data.mixture.total",
    ):
        assert hidden not in done.stdout, hidden
    assert max(map(len, done.stdout.splitlines())) <= 120
    chosen = run("--help", "ablation=mu", "-m", "data=own", "model/lora=default", "callbacks=[checkpoint,none]").stdout
    assert "callbacks: [checkpoint], early_stopping, ema, learning_rate_monitor, mixup_diagnostics, none" in chosen
    assert "  data.max_seq_len=2048 " in chosen
    assert "  model.lora.r=16 " in chosen


@pytest.mark.parametrize("schema", [Config, ReportConfig, *map(schema_of, (*SUITES, "all"))])
def test_every_setting_has_a_meaning_but_names_and_parts(schema):
    def keys(of, prefix=""):
        hints, explained = get_type_hints(of), comments_of(of)
        for f in fields(of):
            part = next((kind for kind in (hints[f.name], *get_args(hints[f.name])) if is_dataclass(kind)), None)
            part = None if get_origin(hints[f.name]) is dict else part
            if part is not None:
                yield from keys(part, f"{prefix}{f.name}.")
            elif f.name not in explained:
                yield f.name

    assert set(keys(schema)) <= {"name", "sources", "total", "leaderboard", "backend", "needs_key", "refused"}


@pytest.mark.parametrize("program", ["eval.py", "report.py", "records.py"])
def test_every_program_has_a_help(program, tmp_path):
    done = subprocess.run([sys.executable, ROOT / program, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if program != "records.py":
        assert "Settings, KEY=VALUE" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "shows"),
    [
        (["--info"], "Config search path"),
        (["--info", "defaults-tree", "ablation=mu"], "model: llama"),
        (["--hydra-help"], "== Flags =="),
        (["--version"], "Hydra 1."),
        (["--cfg", "job", "--resolve", "--package", "recipe.mixup", "recipe.mixup.mu=0.5"], "mu: 0.5"),
        (["--shell-completion", "install=bash"], "hydra_bash_completion"),
    ],
)
def test_options_of_hydra_work(light_programs, arguments, shows, tmp_path):
    done = light_programs.run("train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert shows in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_primary_file_that_does_not_begin_with_ours_is_one_line(tmp_path):
    (tmp_path / "alone.yaml").write_text("defaults: [{model: tiny}, _self_]\nseed: 5\n")
    done = run("--config-dir", ".", "--config-name", "alone", "mode=list", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("config error: mode: the primary config lacks it; a primary file of yours begins")


def test_a_setting_of_hydra_in_a_file_of_ones_own_is_refused(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\nhydra: {output_subdir: .hydra}\n")
    for more in ([], ["-m", "seed=0,1"]):
        done = run("--config-dir", ".", "experiment=mine", *more, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("config error: hydra.output_subdir=.hydra in a configuration file: this setting")
        assert done.stderr.count("\n") == 1


def test_values_that_hydra_cannot_read_without_asserts_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    done = run("data=own", "data.columns={instruction: question}", "root=here", script=LIGHT, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "config error: under `python -O` or PYTHONOPTIMIZE Hydra cannot read values such as {a: b}" in done.stderr


def test_a_defect_of_the_program_keeps_its_traceback(tmp_path):
    done = run(f"root={tmp_path}", script="import sftmix.stages.plan as p\np.check_inputs = None\n" + LIGHT)
    assert done.returncode == 1
    assert "TypeError: 'NoneType' object is not callable" in done.stderr


def test_a_complete_run_is_skipped_before_anything_heavy(small_run, small_overrides):
    config, _ = small_run
    with_numpy = LIGHT.replace("'numpy'", "''")  # the summary compares held-out losses
    done = run(*small_overrides, f"root={config.root}", script=with_numpy)
    assert done.returncode == 0, done.stderr
    for stage in ("reference", "confidence", "target"):
        assert f"{stage:<12}already there: " in done.stdout
    assert "Held-out loss over" in done.stdout


@pytest.mark.parametrize("program", ["train.py --help", "eval.py", "report.py", "records.py", "train.py --cfg job"])
def test_a_standard_output_that_is_full_or_closed_is_no_traceback(program, tmp_path):
    command = [sys.executable, *(str(ROOT / w) if w.endswith(".py") else w for w in program.split())]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: No space left on device; free some space"), done.stderr
    assert done.stderr.count("\n") == 1
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does once it has its lines
    done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


ERRORS = """
import errno, sys
from sftmix.cli import program as cli
with cli.errors_in_one_line():
    {}
"""


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise OSError(errno.ENOSPC, 'No space left on device', '/x/y.json')", "error: /x/y.json: No space left on"),
        ("open('a' * 300)", f"error: {'a' * 300}: File name too long; use a shorter name\n"),
        ("open('/tmp', 'w')", "error: /tmp: Is a directory\n"),
        ("raise OSError('Consistency check failed\\nmore')", "error: Consistency check failed\n"),
    ],
)
def test_an_error_of_the_operating_system_is_one_line(code, says, tmp_path):
    done = run(script=ERRORS.format(code), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(says), done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("setting", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_what_an_output_cannot_encode_is_escaped(setting, tmp_path):
    environment = {**os.environ, "PYTHONCOERCECLOCALE": "0", **setting}
    code = ERRORS.format("print('caf\\u00e9 \\U0001f600'); print('\\ud800')")
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"caf\\xe9 \\U0001f600\n\\ud800\n"


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGTERM, 75, "stopped by SIGTERM: run the same command again\n"),
        (signal.SIGUSR2, 75, "stopped by SIGUSR2: run the same command again\n"),
        (signal.SIGINT, 130, "interrupted: run the same command again\n"),
    ],
)
def test_a_signal_during_the_imports_ends_the_program_with_one_line(number, code, line, tmp_path):
    """A module that sends the signal is imported instead of hydra."""
    (tmp_path / "hydra.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nraise SystemExit(1)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "train.py"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, line)


@pytest.mark.parametrize(
    ("given", "policy"), [(None, "PASSIVE"), pytest.param("ACTIVE", "ACTIVE", marks=pytest.mark.slow)]
)
def test_waiting_openmp_threads_do_not_spin_unless_the_user_says_so(given, policy):
    """The command line sets the variable before torch loads OpenMP, and child processes inherit it."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "TRUE"} | ({} if given is None else {"OMP_WAIT_POLICY": given})
    child = "subprocess.run([sys.executable, '-c', 'import torch'])"
    for code in ("import torch", f"import subprocess, sys; {child}"):
        command = [sys.executable, "-c", f"import sftmix.cli.program; {code}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr
