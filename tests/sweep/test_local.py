"""Jobs as processes on this machine, with a small program in the place of train.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sftmix.artifacts.manifest import MANIFEST
from sftmix.sweep.jobs import DONE, FAILED, STOPPED, WAITING, Job
from sftmix.sweep.local import cause_of, last_line, run_jobs, slots

# What a job does, by its arguments: the folder it makes, then words.
PROGRAM = """
import json, os, pathlib, signal, sys, time
from sftmix.distributed.stopping import PARENT, die_with
die_with(int(os.environ[PARENT]), signal.SIGTERM)
folder, *words = json.loads(pathlib.Path(sys.argv[2]).read_text())["command"][1:]
folder = pathlib.Path(folder)
if "listen" in words:
    signal.signal(signal.SIGTERM, lambda *_: (folder.with_suffix(".saved").touch(), os._exit(75)))
start = time.time()
folder.with_suffix(".pid").write_text(str(os.getpid()))
for word in words:
    if word.startswith("sleep="):
        time.sleep(float(word[6:]))
print("at work", flush=True)
if "fail" in words:
    sys.exit("error: data.path=x: no such file")
if "crash" in words:
    raise RuntimeError("out of luck")
if "die" in words:
    os.kill(os.getpid(), signal.SIGKILL)
if "again" in words:
    sys.exit(75)
if "nothing" not in words:
    folder.mkdir()
    seen = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "start": start, "end": time.time()}
    (folder / "seen.json").write_text(json.dumps(seen))
    (folder / "manifest.json").write_text("{}")
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return file


@pytest.fixture
def run(script, tmp_path):
    def ran(jobs, places=1, changed=lambda _: None):
        where = [None] * places if isinstance(places, int) else places
        return run_jobs(jobs, script, tmp_path, where, "SIGUSR2", changed)

    return ran


def seen(job):
    return json.loads((job.makes.folder / "seen.json").read_text())


def test_one_that_fails_stops_no_other_and_its_cause_is_known(run, job, capfd):
    jobs = [job("a"), job("b", "fail"), job("c", "crash"), job("d", "die"), job("e", "nothing"), job("f")]
    assert run(jobs) == 0
    assert [j.state for j in jobs] == [DONE, FAILED, FAILED, FAILED, FAILED, DONE]
    assert [j.cause for j in jobs[1:5]] == [
        "error: data.path=x: no such file",
        "RuntimeError: out of luck",
        "ended by SIGKILL (short of memory?)",
        "at work",
    ]
    assert capfd.readouterr().out.count("at work") == 6


def test_what_needs_a_failed_one_is_not_run_and_says_why(run, job):
    shared = job("reference", "fail")
    jobs = [shared, job("a", needs=[shared]), job("b")]
    run(jobs)
    assert [j.state for j in jobs] == [FAILED, FAILED, DONE]
    assert jobs[1].cause == f"{shared.makes.folder.name} failed: error: data.path=x: no such file"
    assert jobs[1].log is None


def test_a_shared_stage_comes_first_and_a_row_that_it_makes_is_not_run(run, job):
    shared = job("reference")
    made_by_it = Job("ntp", shared.makes, (), {}, [shared])
    last = job("a", needs=[shared])
    changes = []
    run([last, made_by_it, shared], changed=lambda j: changes.append((j.title, j.state)))
    assert made_by_it.state == DONE
    assert made_by_it.log is None
    assert seen(last)["start"] >= seen(shared)["end"]
    assert changes.index(("reference", DONE)) < changes.index(("a", "running"))


def test_jobs_side_by_side_each_have_a_group_of_gpus(run, job):
    jobs = [job(name, "sleep=0.5") for name in "abcd"]
    run(jobs, slots(["0", "1", "4", "5"], 2, None))
    assert {seen(j)["gpus"] for j in jobs} == {"0,1", "4,5"}
    for gpus in ("0,1", "4,5"):
        first, second = sorted((seen(j) for j in jobs if seen(j)["gpus"] == gpus), key=lambda s: s["start"])
        assert second["start"] >= first["end"]
    spans = [seen(j) for j in jobs]
    assert any(a["start"] < b["end"] and b["start"] < a["end"] for a in spans for b in spans if a["gpus"] != b["gpus"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([], None, None), [None]),
        (([], None, 4), [None] * 4),
        ((["0", "1", "2"], None, None), [None]),
        ((["0", "1", "2"], 1, None), [("0",), ("1",), ("2",)]),
        ((["0", "1", "2"], 1, 2), [("0",), ("1",)]),
        ((["0", "1", "2"], 2, None), [("0", "1")]),
    ],
)
def test_how_many_jobs_run_at_once(arguments, expected):
    assert slots(*arguments) == expected


def test_a_job_that_says_run_me_again_is_stopped_not_failed(run, job):
    jobs = [job("a", "again"), job("b")]
    run(jobs)
    assert [j.state for j in jobs] == [STOPPED, DONE]


RUNNER = """
import sys
from pathlib import Path
from sftmix.artifacts.artifact import Artifact
from sftmix.sweep.jobs import Job
from sftmix.sweep.local import run_jobs
root = Path(sys.argv[1])
def job(title, *words):
    artifact = Artifact(root, title, {})
    return Job(title, artifact, (str(artifact.folder), *words), {})
stopped = run_jobs([job("a", "listen", "sleep=60"), job("b")], root / "program.py", root, [None],
                   "SIGUSR2", lambda j: print(j.title, j.state, flush=True))
sys.exit(stopped)
"""


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def until(holds, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "too late"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGKILL, signal.SIGINT])
def test_a_stopped_or_killed_sweep_lets_its_job_save_and_leaves_no_orphan(script, tmp_path, number):
    command = [sys.executable, "-c", RUNNER, str(tmp_path)]
    runner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: list(tmp_path.glob("a-*.pid")) and next(tmp_path.glob("a-*.pid")).read_text())
    pid = int(next(tmp_path.glob("a-*.pid")).read_text())
    time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(runner.pid, number)  # as a terminal does: the job gets it too
    else:
        runner.send_signal(number)
    out = runner.communicate(timeout=20)[0]
    until(lambda: gone(pid))
    until(lambda: list(tmp_path.glob("a-*.saved")))
    assert not list(tmp_path.glob("b-*"))
    if number != signal.SIGKILL:
        assert runner.returncode == (130 if number == signal.SIGINT else 75)
        assert "a stopped" in out


def test_a_second_interrupt_ends_a_job_that_does_not_save(script, tmp_path):
    script.write_text(
        PROGRAM.replace('folder.with_suffix(".saved").touch(), os._exit(75)', "print('heard', flush=True)")
    )
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    until(lambda: list(tmp_path.glob("a-*.pid")) and next(tmp_path.glob("a-*.pid")).read_text())
    pid = int(next(tmp_path.glob("a-*.pid")).read_text())
    runner.send_signal(signal.SIGINT)
    until(lambda: "heard" in next((tmp_path / "logs").glob("a-*.log")).read_text())
    assert not gone(pid)
    runner.send_signal(signal.SIGINT)
    runner.communicate(timeout=20)
    until(lambda: gone(pid))
    assert runner.returncode != 0


def test_the_cause_is_the_error_line_or_the_last_one(tmp_path):
    log = tmp_path / "log"
    log.write_text("error: a\nmore\nerror: b\nand then\n")
    assert cause_of(2, log) == "error: b"
    log.write_text("10%\r20%\rat the end\x1b[2J")
    assert cause_of(1, log) == "at the end\\x1b[2J"
    assert last_line(log) == "at the end\\x1b[2J"
    assert cause_of(3, None) == "exit code 3"
    assert cause_of(0, None) == "exit code 0, and it made nothing"


def test_a_row_that_is_there_is_not_run(run, job):
    there = job("a")
    there.makes.folder.mkdir()
    (there.makes.folder / MANIFEST).write_text("{}")
    assert there.state == WAITING
    run([there])
    assert there.state == DONE
    assert there.log is None
