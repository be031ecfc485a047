"""How the processes of a stage end. Here they are small programs that do not import torch."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from launched import free_port, weights_of
from sftmix.distributed import launch as launching
from sftmix.distributed.device import Device
from sftmix.distributed.launch import launch
from sftmix.errors import InputError, StageError, Stopped

TWO = Device("cpu", "32-true", "padded", "ddp", 2)
HEAD = """
import os, signal, sys, time
from pathlib import Path
from sftmix.artifacts.manifest import read_json
from sftmix.errors import TRY_AGAIN
from sftmix.distributed.launch import FAILED, note_end
from sftmix.distributed.stopping import die_with
file, rank = Path(sys.argv[1]), int(sys.argv[2])
content = read_json(file)
folder = Path(content["folder"])
die_with(content["parent"])
(folder / f"aside-{rank}").write_text(str(os.getpid()))
(folder / f"aside-{rank}").rename(folder / f"pid-{rank}")
def both():
    while not all((folder / f"pid-{k}").is_file() for k in (0, 1)): time.sleep(0.01)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Launch two ranks that run a program."""

    def started(program):
        (tmp_path / "program_of_rank.py").write_text(HEAD + textwrap.dedent(program))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        launch("program_of_rank", {"folder": str(tmp_path)}, TWO, "SIGUSR2")

    return started


def alive(tmp_path) -> list[int]:
    found = []
    for file in tmp_path.glob("pid-*"):
        try:
            os.kill(int(file.read_text()), 0)
            found.append(int(file.read_text()))
        except ProcessLookupError:
            pass
    return found


def test_ranks_that_succeed_are_waited_for(start, tmp_path):
    start("time.sleep(0.3 * rank); (folder / f'done-{rank}').write_text('')")
    assert len(list(tmp_path.glob("done-*"))) == 2
    assert not alive(tmp_path)


def test_a_rank_that_fails_ends_the_others_and_the_first_cause_is_reported(start, tmp_path):
    with pytest.raises(StageError) as caught:
        start(
            """
            both()
            if rank == 1:
                note_end(file, rank, "traceback", "Traceback: the cause"); os._exit(FAILED)
            time.sleep(0.5)
            note_end(file, rank, "traceback", "Traceback: connection closed by peer"); time.sleep(600)
            (folder / "was-waited-for").write_text("")
            """
        )
    assert str(caught.value).startswith("rank 1 of 2 failed first:\nTraceback: the cause")
    assert not (tmp_path / "was-waited-for").exists()
    assert not alive(tmp_path)


def test_a_killed_rank_is_the_cause_and_not_the_lost_connection_of_the_others(start, tmp_path):
    with pytest.raises(StageError, match=r"^rank 1 of 2 was ended by SIGKILL \(short of memory\?\)"):
        start(
            """
            both()
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            note_end(file, rank, "traceback", "connection closed by peer"); os._exit(FAILED)
            """
        )
    assert not alive(tmp_path)


def test_the_last_lines_of_a_silent_rank_are_reported(start):
    with pytest.raises(StageError, match=r"rank 1 of 2 ended with exit code 9\nlast words"):
        start("both(); rank and (print('last words', flush=True), os._exit(9))")


def test_an_input_error_of_a_rank_is_one_line(start):
    with pytest.raises(InputError, match=r"^a\.json: no rows$"):
        start("both(); note_end(file, rank, 'input', 'a.json: no rows'); os._exit(FAILED)")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_is_sent_on_and_ranks_that_stop_are_not_a_failure(start, tmp_path, number):
    def ask():
        while len(list(tmp_path.glob("ready-*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=ask).start()
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="stopped after step 7"):
        start(
            """
            asked = []
            signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
            (folder / f"ready-{rank}").write_text("")
            while not asked: time.sleep(0.01)
            note_end(file, rank, "stopped", "stopped after step 7 of 9"); os._exit(TRY_AGAIN)
            """
        )
    assert signal.getsignal(number) is before
    assert not alive(tmp_path)


LISTENS = """
            asked = []
            signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
            (folder / f"ready-{rank}").write_text("")
"""


def ask_when_ready(tmp_path, *numbers):
    """Send this process signals when two ranks are ready, each when both ranks have received the one before."""

    def ask():
        for count, number in enumerate(numbers):
            while len(list(tmp_path.glob("ready-*" if count == 0 else "heard-*"))) < 2:
                time.sleep(0.01)
            os.kill(os.getpid(), number)

    threading.Thread(target=ask).start()


def test_the_first_interrupt_lets_the_ranks_save(start, tmp_path, capfd):
    ask_when_ready(tmp_path, signal.SIGINT)
    with pytest.raises(Stopped, match="stopped after step 7 of 9") as stopped:
        start(
            LISTENS
            + """
            while not asked: time.sleep(0.01)
            note_end(file, rank, "stopped", "stopped after step 7 of 9"); os._exit(TRY_AGAIN)
            """
        )
    assert stopped.value.code == 130
    assert capfd.readouterr().err.count("a second Ctrl-C ends at once") == 1
    assert not alive(tmp_path)


def test_the_second_interrupt_ends_the_ranks_at_once(start, tmp_path):
    ask_when_ready(tmp_path, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(
            LISTENS
            + """
            while not asked: time.sleep(0.01)
            (folder / f"heard-{rank}").write_text("")
            time.sleep(600)
            """
        )
    assert not alive(tmp_path)


def test_a_rank_does_not_see_an_interrupt_of_the_terminal(start, tmp_path):
    start("os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1); (folder / f'done-{rank}').write_text('')")
    assert len(list(tmp_path.glob("done-*"))) == 2


def test_a_rank_that_a_stop_ends_before_it_handles_signals_is_not_a_failure(start, tmp_path):
    ask_when_ready(tmp_path, signal.SIGUSR2)
    with pytest.raises(Stopped, match="stopped before the first step") as stopped:
        start(
            """
            (folder / f"ready-{rank}").write_text("")
            if rank == 0:
                time.sleep(600)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while (folder / "pid-0").is_file() and os.path.exists(f"/proc/{(folder / 'pid-0').read_text()}/fd/1"):
                time.sleep(0.01)
            note_end(file, rank, "traceback", "connection closed by peer"); os._exit(FAILED)
            """
        )
    assert stopped.value.code == 75


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_process_ends_with_its_parent_on_every_system(tmp_path, platform):
    """On Linux by the kernel, on other systems by a thread that watches the parent."""
    child = f"""
import sys, os, time
from pathlib import Path
from sftmix.distributed import stopping
stopping.sys.platform, stopping.WATCH = {platform!r}, 0.05
stopping.die_with(os.getppid())
Path("pid-a").write_text(str(os.getpid())); Path("pid-a").rename("pid-0")
time.sleep(600)
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], cwd={str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", parent])
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid-0").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    while alive(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_ignored_interrupt_stays_ignored():
    """Nohup and some shells start programs with SIGINT ignored."""
    from sftmix.distributed.stopping import StopRequest, stops_handed_on

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest(["SIGTERM"]).listening(), stops_handed_on(list, "SIGUSR2"):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_stop_does_not_hide_a_failure(start, tmp_path):
    def ask():
        while len(list(tmp_path.glob("ready-*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    with pytest.raises(InputError, match="No space left on device"):
        start(
            """
            asked = []
            signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
            (folder / f"ready-{rank}").write_text("")
            while not asked: time.sleep(0.01)
            note_end(file, rank, "input", "states/step-7: No space left on device"); os._exit(FAILED)
            """
        )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_parent_that_is_ended_leaves_no_orphan(tmp_path, monkeypatch, number):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "program_of_rank.py").write_text(HEAD + "both(); time.sleep(600)")
    (tmp_path / "parent.py").write_text(
        textwrap.dedent(
            f"""
            from sftmix.distributed.device import Device
            from sftmix.distributed.launch import launch
            launch("program_of_rank", {{"folder": {str(tmp_path)!r}}}, Device{tuple(TWO)!r}, "SIGUSR2")
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("pid-*"))) < 2:
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.01)
    assert len(alive(tmp_path)) == 2
    parent.send_signal(number)
    parent.wait(timeout=30)
    while alive(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(tmp_path)


def test_a_rank_whose_parent_has_ended_exits(tmp_path):
    program = "from sftmix.distributed.stopping import die_with; die_with(1); print('lives')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert "lives" not in ended.stdout


def test_no_temporary_file_is_left(start, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(launching.tempfile, "tempdir", str(tmp_path / "tmp"))
    start("pass")
    assert not list((tmp_path / "tmp").iterdir())
    assert Path(launching.tempfile.gettempdir()) == tmp_path / "tmp"


def test_a_meeting_point_that_cannot_be_reached_is_one_line():
    from sftmix.distributed.process_group import init_process_group
    from sftmix.distributed.ranks import Ranks

    with pytest.raises(
        InputError, match=r"^trainer\.rdzv_endpoint=127\.0\.0\.1:9: 2 processes did not find each other there"
    ) as caught:
        init_process_group(Ranks(1, 0, 2, 1), "cpu", "127.0.0.1:9", 1.0)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_nodes_end_with_the_weights_of_one_with_two_processes(small_overrides, conf, tmp_path, strategy):
    """Two launchers on one machine; only the first makes the artifacts."""
    port = free_port()
    common = [*small_overrides, f"trainer={strategy}", "trainer.accelerator=cpu"]
    nodes = ["trainer.devices=1", "trainer.num_nodes=2", f"trainer.rdzv_endpoint=127.0.0.1:{port}"]

    def command(*overrides, root):
        line = [sys.executable, "train.py", *common, *overrides, f"root={tmp_path / root}"]
        return subprocess.Popen(line, cwd=conf.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    started = [command(*nodes, f"trainer.node_rank={node}", root="nodes") for node in (0, 1)]
    said = [node.communicate(timeout=600)[0] for node in started]
    assert [node.returncode for node in started] == [0, 0], "\n".join(said)
    one = command("trainer.devices=2", root="one")
    assert (one.communicate(timeout=600)[0], one.returncode)[1] == 0
    for kind in ("ntp", "sftmix"):
        assert weights_of(tmp_path / "nodes", kind) == weights_of(tmp_path / "one", kind)
