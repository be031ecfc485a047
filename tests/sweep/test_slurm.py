"""Jobs of a sweep under SLURM, whose commands have stand-ins: sbatch runs the file that submitit wrote."""

import os
import re
import sys
import time

import pytest

from sftmix.errors import InputError
from sftmix.sweep.jobs import DONE, FAILED, RUNNING, STOPPED, WAITING
from sftmix.sweep.slurm import submit_jobs, update_state

pytest.importorskip("submitit")

# A job waits for those it depends on; without them it does not start. `queue/N` holds its state, `queue/N.sh` the file.
SBATCH = """#!{python}
import pathlib, re, subprocess, sys
queue = pathlib.Path(sys.argv[0]).parent / "queue"
queue.mkdir(exist_ok=True)
number = str(1001 + len(list(queue.glob("*.sh"))))
text = pathlib.Path(sys.argv[1]).read_text()
(queue / (number + ".sh")).write_text(text)
(queue / number).write_text("PENDING")
subprocess.Popen([sys.executable, sys.argv[0] + ".run", str(queue), number], start_new_session=True,
                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job " + number)
"""
RUN = """
import os, pathlib, re, subprocess, sys, time
queue, number = pathlib.Path(sys.argv[1]), sys.argv[2]

def put(state):  # at once: a reader never sees an empty file
    (queue / ("." + number)).write_text(state)
    (queue / ("." + number)).replace(queue / number)

text = (queue / (number + ".sh")).read_text()
before = re.search("--dependency=afterok:(.*)", text)
for other in before.group(1).split(":") if before else []:
    while (queue / other).read_text() in ("PENDING", "RUNNING"):
        time.sleep(0.05)
    if (queue / other).read_text() != "COMPLETED":
        put("CANCELLED by 0")
        sys.exit()
put("RUNNING")
env = {**os.environ, "SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0",
       "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
code = subprocess.run(["bash", str(queue / (number + ".sh"))], env=env).returncode
put("COMPLETED" if code == 0 else "FAILED")
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do [[ "$1" == --output || "$1" == --error ]] && shift; shift; done
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
cd "$(dirname "$0")/queue" && for job in [0-9]*; do [[ $job == *.sh ]] || echo "$job|$(cat $job)|node-a"; done
"""
PROGRAM = """
import json, pathlib, sys
folder, *words = json.loads(pathlib.Path(sys.argv[2]).read_text())["command"][1:]
print("at work", flush=True)
if "fail" in words:
    sys.exit("error: data.path=x: no such file")
pathlib.Path(folder).mkdir()
(pathlib.Path(folder) / "manifest.json").write_text("{}")
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    commands = tmp_path / "commands"
    commands.mkdir()
    contents = {"sbatch": SBATCH.replace("{python}", sys.executable), "srun": SRUN, "sacct": SACCT, "sbatch.run": RUN}
    for name, content in contents.items():
        (commands / name).write_text(content)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    (tmp_path / "program.py").write_text(PROGRAM)
    return commands


@pytest.fixture
def submit(compose, tmp_path):
    def submitted(jobs, *overrides):
        config = compose("sweep=slurm", "sweep.slurm.partition=short", *overrides)
        submit_jobs(jobs, config, tmp_path / "program.py", tmp_path / "sweep", lambda _: None)

    return submitted


def settled(jobs, folder):
    """Look until no job goes on."""
    end = time.monotonic() + 60
    while True:
        for job in jobs:
            if job.makes.is_complete:
                job.state = DONE
            elif job.slurm_id:
                update_state(folder, job)
        if all(job.state not in (RUNNING, WAITING) for job in jobs):
            return
        assert time.monotonic() < end, [(job.state, job.cause) for job in jobs]
        time.sleep(0.2)


def test_a_row_is_submitted_after_the_stage_it_shares_and_what_slurm_is_asked_for(slurm, job, submit, tmp_path):
    shared, there = job("reference"), job("there")
    there.state = DONE
    rows = [job("a", needs=[shared]), job("b", needs=[shared, there])]
    submit([shared, there, *rows], "sweep.gpus_per_job=4", "sweep.slurm.more={reservation: night}")
    assert [j.slurm_id for j in (shared, there, *rows)] == ["1001", None, "1002", "1003"]
    text = (slurm / "queue/1003.sh").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
    assert asked["dependency"] == "afterok:1001"
    assert (asked["partition"], asked["gpus-per-node"], asked["time"]) == ("short", "4", "1440")
    assert (asked["cpus-per-task"], asked["reservation"], asked["kill-on-invalid-dep"]) == ("16", "night", "yes")
    assert "dependency" not in (slurm / "queue/1001.sh").read_text()
    settled([shared, *rows], tmp_path / "sweep")
    assert [j.state for j in (shared, *rows)] == [DONE] * 3


def test_a_failed_stage_is_told_with_its_cause_and_what_needs_it_does_not_start(slurm, job, submit, tmp_path):
    shared = job("reference", "fail")
    row, other = job("a", needs=[shared]), job("b")
    submit([shared, row, other])
    settled([shared, row, other], tmp_path / "sweep")
    assert [j.state for j in (shared, row, other)] == [FAILED, STOPPED, DONE]
    assert shared.cause == "SLURM's job 1001 is FAILED: error: data.path=x: no such file"
    assert row.cause == "SLURM's job 1002 is CANCELLED: it has no output"


def test_a_job_in_the_queue_is_not_submitted_again_and_keeps_its_configuration(slurm, job, submit, tmp_path):
    waits = job("a")
    submit([waits])
    file = tmp_path / "sweep/configs" / f"{waits.makes.folder.name}.json"
    before = file.read_text()
    waits.config = {"seed": 1}
    submit([waits, job("b")])
    assert len(list((slurm / "queue").glob("*.sh"))) == 2
    assert file.read_text() == before
    assert (file.stat().st_mode & 0o777) == 0o600


def test_a_job_that_slurm_has_forgotten_may_be_submitted_again(slurm, job, tmp_path):
    (slurm / "queue").mkdir()
    (slurm / "queue/1").write_text("COMPLETED")
    lost = job("a")
    lost.slurm_id, lost.state = "99", RUNNING
    update_state(tmp_path / "sweep", lost)
    assert (lost.state, lost.cause) == (STOPPED, "SLURM's job 99 is UNKNOWN: it has no output")


def test_time_that_is_up_lets_the_process_save_and_goes_on_later(tmp_path):
    from threading import Timer

    from sftmix.sweep.slurm import TrainJob

    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, signal, sys, time\n"
        "saved = pathlib.Path(sys.argv[1])\n"
        "signal.signal(signal.SIGTERM, lambda *_: (saved.touch(), os._exit(75)))\n"
        "print('listens', flush=True)\n"
        "time.sleep(60)\n"
    )
    log, saved = tmp_path / "log", tmp_path / "saved"
    train = TrainJob([str(program), str(saved)], str(log))
    again = []

    def time_is_up():
        while not (log.is_file() and "listens" in log.read_text()):
            time.sleep(0.05)
        again.append(train.checkpoint())

    Timer(0.1, time_is_up).start()
    with pytest.raises(RuntimeError, match="stopped; the same command continues"):
        train()
    for _ in range(100):
        if again:
            break
        time.sleep(0.1)
    assert saved.is_file()
    assert again[0].function.arguments == train.arguments


def test_without_slurm_it_says_so(job, submit, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match='sweep=slurm: Could not detect "srun"'):
        submit([job("a")])
    assert not (tmp_path / "sweep/logs").exists()


def test_rows_in_slurms_queue_are_not_run_here_too(slurm, compose, tmp_path, capsys):
    from sftmix.sweep.sweep import run_sweep

    (slurm / "queue").mkdir()
    (slurm / "queue/7").write_text("PENDING")

    def called(*overrides):
        common = ("model=tiny", f"root={tmp_path / 'runs'}", *overrides)
        return run_sweep("sweep", common, [("seed=1",)], lambda given: compose(*given))

    called("sweep=slurm", "recipe=ntp", "sweep.gpus_per_job=null")
    (number,) = [file.stem for file in (slurm / "queue").glob("*.sh")]
    (slurm / "queue" / number).write_text("PENDING")
    with pytest.raises(InputError, match=rf"sweep=local: SLURM has seed=1 as job {number}"):
        called("recipe=ntp")
