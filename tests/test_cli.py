"""The command as people call it: one line for what they can mend, before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LIGHT = f"""
import sys, runpy
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
finally:
    heavy = {{"torch", "lightning", "transformers", "datasets", "wandb"}} & set(sys.modules)
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
            "config error: recipe=nosuch: no such choice, expected one of instruction_modelling, mixup_",
        ),
        (["ablation=nosuch"], "config error: ablation=nosuch: no such choice, expected one of alpha, healthcare, "),
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
        (["recipe.mixup.mu=0.1,0.5"], "config error: recipe.mixup.mu=0.1,0.5: several values, add -m to sweep over"),
        (["recipe=null"], "config error: Config group override must be a string or a list. Got NoneType"),
        (["recipe.mixup.mu=="], "config error: recipe.mixup.mu==: cannot be read, expected key=value"),
        (["nosuch=1"], "config error: nosuch=1: no such key, the configuration has mode, seed, root, model, "),
        (["+ablation=mu"], "config error: +ablation=...: write ablation=... without +"),
        (["-m", "recipe.mixup.muu=1,2"], "config error: recipe.mixup.muu=1,2: no such key, did you mean mu?"),
        (["data.epochs=many"], "config error: data.epochs: Value 'many' of type 'str' could not be converted"),
        (
            ["data.columns={question: instruction}"],
            "config error: data.columns.question: no such key, data.columns has instruction, input, output, prompt, "
            "completion, system, messages, conversations, group; one of these comes first: 'data.columns={instruction:",
        ),
        (["data.columns={outptu: answer}"], "config error: data.columns.outptu: no such key, did you mean output?"),
        (["model=llama", "model.init.seed=3"], "config error: model.init.seed=3: model llama has no init"),
        (["data=alpaca", "data.path=/no/such.json"], "error: data.path=/no/such.json: no such file"),
        (["model=local", "model.path=/no/such"], "error: model.path=/no/such: no such folder"),
        (["trainer=gpu"], "config error: trainer.accelerator=gpu: no CUDA device is visible"),
        (["confidence.path=/no/such.parquet"], "error: confidence.path=/no/such.parquet: no such file"),
    ],
)
def test_what_a_user_can_mend_is_one_line_before_anything_heavy(arguments, says, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run(*arguments, "root=here", script=LIGHT, cwd=tmp_path)
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


def test_help_names_the_choices():
    done = run("--help")
    assert done.returncode == 0
    for group in ("model", "data", "recipe", "trainer", "logger", "ablation"):
        assert f"{group}: " in done.stdout


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
    done = run(*small_overrides, f"root={config.root}", script=LIGHT)
    assert done.returncode == 0, done.stderr
    for stage in ("reference", "confidence", "target"):
        assert f"{stage:<12}already there: " in done.stdout
    assert "Held-out loss over" in done.stdout
