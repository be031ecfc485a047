"""Ranks that torchrun and srun give to a process."""

import os
import subprocess
import sys

import pytest

from sftmix.distributed.ranks import Ranks, StartedRanks, started_ranks
from sftmix.errors import ConfigError

ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def torchrun(rank, local_rank, world_size, num_local=None):
    own = {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(world_size), **ADDRESS}
    return own if num_local is None else {**own, "LOCAL_WORLD_SIZE": str(num_local)}


def srun(rank, local_rank, num_tasks, num_nodes):
    return {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local_rank),
        "SLURM_NTASKS": str(num_tasks),
        "SLURM_NNODES": str(num_nodes),
    }


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (ADDRESS, None),
        (torchrun(1, 1, 2), StartedRanks("torchrun", Ranks(1, 1, 2, 2))),
        (torchrun(3, 1, 4, 2), StartedRanks("torchrun", Ranks(3, 1, 4, 2))),
        (torchrun(0, 0, 1), None),
        (torchrun(1, 0, 2, 1), StartedRanks("torchrun", Ranks(1, 0, 2, 1))),
        (srun(3, 1, 4, 2), StartedRanks("srun", Ranks(3, 1, 4, 2))),
        (srun(1, 0, 2, 2), None),
        (srun(0, 0, 1, 1), None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NNODES": "1"}, None),
        ({"SLURM_STEP_ID": "0"}, None),
        # the shell of an interactive job: the step has one task, the job several
        ({**srun(0, 0, 4, 1), "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, None),
        ({**srun(0, 0, 4, 1), **torchrun(1, 1, 2)}, StartedRanks("torchrun", Ranks(1, 1, 2, 2))),
    ],
)
def test_ranks_are_those_of_the_program_that_started_the_process(variables, expected):
    assert started_ranks(variables) == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "environment: RANK set, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set; start"),
        ({"RANK": "0", "WORLD_SIZE": "2", **ADDRESS}, "environment: RANK, WORLD_SIZE set, LOCAL_RANK not set; start"),
        ({**torchrun(0, 0, 2), "RANK": "first"}, "environment: RANK=first, expected an integer from 0"),
        (torchrun(2, 0, 2), "environment: RANK=2, LOCAL_RANK=0, WORLD_SIZE=2 contradict each other"),
        (torchrun(0, 1, 2), "environment: RANK=0, LOCAL_RANK=1, WORLD_SIZE=2 contradict each other"),
        (torchrun(0, 0, 3, 2), "WORLD_SIZE=3, LOCAL_WORLD_SIZE=2 contradict each other"),
        (srun(0, 0, 3, 2), "SLURM_NTASKS=3, SLURM_NNODES=2 contradict each other"),
        (srun(1, 0, 4, 2), "SLURM_PROCID=1, SLURM_LOCALID=0, SLURM_NTASKS=4, SLURM_NNODES=2 contradict each other"),
        (
            {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"},
            "environment: SLURM_STEP_ID set, SLURM_PROCID, SLURM_LOCALID not set; start",
        ),
    ],
)
def test_incomplete_and_contradicting_variables_are_one_line(variables, message):
    with pytest.raises(ConfigError) as caught:
        started_ranks(variables)
    assert message in str(caught.value)
    assert "trainer.launcher=own" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_the_first_process_prints_until_output_is_restored():
    program = """
import sys
from sftmix.distributed.ranks import discard_output_of_followers, restore_output
discard_output_of_followers()
print("before", flush=True)
print("error before", file=sys.stderr, flush=True)
restore_output(and_standard_output=False)
print("between", flush=True)
print("error between", file=sys.stderr, flush=True)
restore_output(and_standard_output=True)
print("after", flush=True)
"""
    for rank, out, err in ((0, "before between after", "error before error between"), (1, "after", "error between")):
        environment = {**os.environ, **torchrun(rank, rank, 2)}
        ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert " ".join(ended.stdout.split()) == out
        assert " ".join(ended.stderr.split()) == err
