"""Several processes give the results of one, and none of them survives. Most tests load no model."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tqdm import tqdm

import pool_functions as functions
from builders import new_tiny_tokenizer, random_examples, save_tiny_llama
from paths import ROOT
from pool_functions import NoModel
from sftmix.data.example import Message
from sftmix.errors import InputError, StageError
from sftmix.evaluation import model_pool
from sftmix.evaluation.generators.answering import Prompt, answer_all
from sftmix.evaluation.generators.hf import HFGenerator
from sftmix.evaluation.model_pool import ModelPool, ModelSource
from sftmix.evaluation.offline.token_statistics import Forward, linearity, token_statistics


@pytest.fixture
def two():
    """A pool of two processes without a model."""
    pool = ModelPool(NoModel(), 2)
    yield pool
    pool.close()


def processes_of(pool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]


@pytest.mark.usefixtures("one_thread")  # as each of two processes on two cores: the same sums
def test_two_processes_give_the_answers_and_losses_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = save_tiny_llama(new_tiny_tokenizer(), tmp_path / "model")
    source = ModelSource(str(folder), None, "float32", "cpu")
    turns = [(Message("user", "Name a color." + " Now." * k),) for k in range(6)]
    prompts = [Prompt(f"{k}", 1, 1, turn, t, 8) for k, turn in enumerate(turns) for t in (0.0, 0.7)]
    examples = random_examples(12, vocab=300, seed=0)
    pairs = list(itertools.pairwise(examples))
    answers, losses = [], []
    for num_devices in (1, 2):
        pool = ModelPool(source, num_devices)
        generator = HFGenerator(pool, identity="tiny", template_name="chatml", seed=0, batch_size=3)
        journal = tmp_path / str(num_devices)
        answers.append(answer_all(prompts, generator, journal, title="test", show_progress=False))
        forward = Forward(pool, 16, show_progress=False)
        losses.append((token_statistics(forward, examples, "").nll, linearity(forward, pairs, [0.3], "")))
        assert len(pool._workers) == (0 if num_devices == 1 else 2)
        pool.close()
    assert answers[0] == answers[1]
    assert len({answer.text for answer in answers[0]}) > 6
    assert losses[0] == losses[1]
    pool = ModelPool(source, 2)  # every answer is kept: nothing is started
    generator = HFGenerator(pool, identity="tiny", template_name="chatml", seed=0, batch_size=3)
    assert answer_all(prompts, generator, tmp_path / "1", title="test", show_progress=False) == answers[0]
    assert not pool._workers
    assert "loaded" not in vars(pool)


def test_what_is_known_without_weights_is_what_the_model_has(shared):
    source = ModelSource(str(shared / "models" / "stories260K"), None, "float32", "cpu")
    made = [
        HFGenerator(pool, identity="stories", template_name="chatml", seed=0, batch_size=1)
        for pool in (ModelPool(source, 2), ModelPool.holding(*source.load()))
    ]
    assert made[0].settings == made[1].settings
    assert made[0].prompts.num_positions == made[1].prompts.num_positions == 512
    assert next(made[0].pool.empty_model.parameters()).is_meta


def test_results_come_as_they_are_finished_and_processes_stay_for_the_next_items(two, capsys):
    assert dict(two.map(functions.square, range(20))) == {k: k * k for k in range(20)}
    started = processes_of(two)
    seconds = [0.6, 0.0, 0.0, 0.0]
    found = list(two.map(functions.wait_seconds, seconds))
    assert [index for index, _ in found] == [1, 2, 3, 0], "the others share the short items"
    assert {pid for _, pid in found} == set(started) == set(processes_of(two))
    assert list(two.map(functions.square, [])) == []
    assert capsys.readouterr().out == "model       no model, float32 on cpu, 2 processes\n"


def test_the_line_of_the_model_is_not_appended_to_a_progress_bar(capsys):
    with tqdm(total=1):
        ModelPool(NoModel(), 1)._print_model("")
    assert capsys.readouterr().err.count("0/1") == 3, "the bar is drawn, redrawn below the line, and left at its end"


def test_few_items_start_few_processes():
    pool = ModelPool(NoModel(), 8)
    assert dict(pool.map(functions.square, [3])) == {0: 9}
    assert len(pool._workers) == 1
    pool.close()


def test_large_items_and_results_do_not_block_each_other(two):
    items = [bytes(10**6) for _ in range(6)]
    assert dict(two.map(functions.echo, items)) == {k: items[k] for k in range(6)}


@pytest.mark.parametrize("num_devices", [1, 2])
def test_an_error_of_a_function_is_raised_here(num_devices):
    pool = ModelPool(NoModel(), num_devices)
    with pytest.raises(KeyError, match="lost") as caught:
        list(pool.map(functions.fail, [KeyError("lost")]))
    if num_devices == 2:
        assert "in fail" in "".join(caught.value.__notes__)
    with pytest.raises(InputError, match=r"^one line$"):
        list(pool.map(functions.fail, [InputError("one line")] * 3))
    assert not pool._workers
    assert dict(pool.map(functions.square, [2, 3])) == {0: 4, 1: 9}, "the next call starts processes again"
    pool.close()


def test_a_result_that_cannot_be_pickled_is_an_error_not_a_hang(two):
    with pytest.raises(Exception, match="pickle"):
        list(two.map(functions.generator_of, [1, 2]))


def test_a_model_that_cannot_be_loaded_is_one_line():
    pool = ModelPool(NoModel(error="model folder m: could not be read"), 2)
    with pytest.raises(InputError, match=r"^model folder m: could not be read$"):
        list(pool.map(functions.square, [1, 2, 3]))
    assert not pool._workers


def test_a_killed_process_is_one_line_and_ends_the_others(two):
    with pytest.raises(StageError, match=r"^process [12] of 2 with the model was ended by SIGKILL \(short of memory\?"):
        list(two.map(functions.end_by, [0, 0, signal.SIGKILL, 0]))
    assert not two._workers
    assert dict(two.map(functions.square, [2, 3])) == {0: 4, 1: 9}


def test_a_caller_that_stops_early_leaves_no_process(two):
    results = two.map(functions.wait_seconds, [0, 0, 60, 60])
    next(results)
    started = processes_of(two)
    results.close()
    assert not two._workers
    assert not [pid for pid in started if is_alive(pid)]


def test_each_process_sees_its_gpu(monkeypatch):
    monkeypatch.setattr(model_pool, "visible_gpus", lambda: ["3", "GPU-8f2"])
    pool = ModelPool(NoModel(device="cuda"), 2)
    found = {value for _, (_, value) in pool.map(functions.variable, ["CUDA_VISIBLE_DEVICES"] * 2)}
    assert found == {"3", "GPU-8f2"}
    pool.close()


def test_processes_on_a_cpu_share_its_cores(monkeypatch, two):
    monkeypatch.setattr(model_pool, "num_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert {value for _, (_, value) in two.map(functions.variable, ["OMP_NUM_THREADS"])} == {"3"}


def test_a_process_leaves_ctrl_c_to_its_parent_and_only_the_first_prints(two, capfd):
    found = dict(two.map(functions.blocks_ctrl_c, ["hello"] * 2))
    assert {pid for pid, _ in found.values()} == set(processes_of(two))
    assert all(blocks for _, blocks in found.values())
    assert capfd.readouterr().out.count("hello") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_parent_that_is_ended_leaves_no_process(tmp_path, number):
    program = f"""
        import sys
        sys.path.insert(0, {os.path.dirname(functions.__file__)!r})
        from pathlib import Path
        import pool_functions as functions
        from sftmix.evaluation.model_pool import ModelPool
        if __name__ == "__main__":
            list(ModelPool(functions.NoModel(), 2).map(functions.note_process, [Path({str(tmp_path)!r})] * 2))
        """
    (tmp_path / "parent.py").write_text(textwrap.dedent(program))
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("pid-*"))) < 2:
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.01)
    started = [int(file.name.removeprefix("pid-")) for file in tmp_path.glob("pid-*")]
    os.killpg(parent.pid, number) if number == signal.SIGINT else parent.send_signal(number)  # as a terminal does
    _, errors = parent.communicate(timeout=30)
    assert errors.count("Traceback") == (number == signal.SIGINT), "only the parent says that it was interrupted"
    assert "leaked" not in errors, "a lock of a progress bar"
    while any(map(is_alive, started)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_alive, started))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_evaluation_that_is_ended_leaves_no_process_and_can_continue(shared, tmp_path, number):
    shutil.copytree(shared / "models" / "stories260K", tmp_path / "stories")
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()

    def start(devices):
        folder = tmp_path / ("one" if devices == 1 else "two")
        command = [
            *(sys.executable, str(ROOT / "eval.py"), f"run={tmp_path / 'stories'}", f"root={folder}"),
            *(f"bench={shared / 'data' / 'bench'}", "suite=mt_bench", "judge=fake", "limit=12"),
            *("suite.rounds=1", "suite.max_new_tokens=16", "generate.template=chatml", "generate.batch_size=2"),
            *("device=cpu", f"devices={devices}"),
        ]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, start_new_session=True, cwd=tmp_path, **pipes)

    def answers(name):
        files = list((tmp_path / name).glob("evaluated/*/evaluation/mt_bench/answers-*.jsonl"))
        return sorted(line for file in files for line in file.read_text().splitlines())

    ended = start(2)
    while not answers("two"):
        assert ended.poll() is None, ended.communicate()
        time.sleep(0.01)
    os.killpg(ended.pid, number) if number == signal.SIGINT else ended.send_signal(number)
    _, errors = ended.communicate(timeout=60)
    assert "Traceback" not in errors
    deadline = time.monotonic() + 60
    while in_session(ended.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not in_session(ended.pid)
    kept = answers("two")
    assert 0 < len(kept) < 24
    for devices in (2, 1):
        process = start(devices)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert set(kept) < set(answers("two"))
    assert len(answers("one")) == 24
    assert answers("two") == answers("one")


def in_session(leader: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            found += [int(folder.name)] if int(session) == leader and state != "Z" else []
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
