"""The batch file of the README, run with stand-ins for SLURM's commands."""

import os
import re
import subprocess

import pytest

from paths import ROOT

FILE = ROOT / "slurm/train.sbatch"
SRUN = '#!/bin/sh\necho "$@" > "$(dirname "$0")/srun.txt"\nexit {code}\n'
SCONTROL = """#!/bin/sh
case "$1" in
  show) printf 'node-a\\nnode-b\\n' ;;
  *) echo "$@" > "$(dirname "$0")/requeued.txt" ;;
esac
"""


@pytest.fixture
def submit(tmp_path):
    """Run the batch file as SLURM would, with arguments; what srun was given, and whether the job was queued again."""

    def submitted(code, *arguments):
        for name, content in (("srun", SRUN.format(code=code)), ("scontrol", SCONTROL)):
            (tmp_path / name).write_text(content)
            (tmp_path / name).chmod(0o755)
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_JOB_ID": "4242",
            "SLURM_NNODES": "2",
        }
        ended = subprocess.run(["bash", str(FILE), *arguments], env=environment, check=False)
        assert ended.returncode == code
        return (tmp_path / "srun.txt").read_text().split(), (tmp_path / "requeued.txt").is_file()

    return submitted


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (75, True)])
def test_a_run_that_says_run_me_again_is_queued_again_and_no_other(submit, code, again):
    assert submit(code)[1] is again


def test_its_command_composes_on_each_node(submit, compose, monkeypatch):
    given, _ = submit(0, "model=llama", "data=ultrachat")
    overrides = given[given.index("train.py") + 1 :]
    for node in (0, 1):
        monkeypatch.setenv("SLURM_NODEID", str(node))
        trainer = compose(*overrides).trainer
        assert (trainer.strategy, trainer.num_nodes, trainer.node_rank) == ("fsdp", 2, node)
        assert re.fullmatch(r"node-a:2\d{4}", trainer.rdzv_endpoint)


def test_its_head_asks_for_one_task_a_node_and_a_signal_that_the_trainer_knows(compose):
    head = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", FILE.read_text(), re.MULTILINE))
    assert head["ntasks-per-node"] == "1"
    assert f"SIG{head['signal'].split('@')[0]}" == compose().trainer.stop_signal
    assert "requeue" in head
