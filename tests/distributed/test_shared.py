"""Processes that torchrun or srun has started: the JSON that they exchange, and that they end together."""

import textwrap

from launched import ends_of, start_as

HEAD = """
import os, sys, time
from sftmix.distributed.ranks import started_ranks
from sftmix.distributed.shared import SharedProcesses
shared = SharedProcesses(started_ranks(), 60.0)
rank = shared.ranks.rank
"""


def run(program, by="torchrun", num_ranks=2):
    return ends_of(start_as(by, ["-c", HEAD + textwrap.dedent(program)], num_ranks), 120)


def test_the_first_process_sends_json_to_the_others_and_ends_them():
    first, *others = run(
        """
        if rank == 0:
            shared.send({"a": "ü"}); shared.send({"b": [1.5, None]})
            while shared.store.add("printed", 0) < 2: time.sleep(0.01)
            assert shared.end(0) is None
        else:
            print(shared.receive(), shared.receive(), flush=True)
            shared.store.add("printed", 1)
            shared.receive()
        """,
        "srun",
        3,
    )
    assert first == (0, "", "")
    assert others == [(0, "{'a': 'ü'} {'b': [1.5, None]}\n", "")] * 2


def test_a_process_that_fails_ends_the_others_with_its_exit_code():
    ends = run(
        """
        if rank == 1:
            assert shared.end(7) is None
            sys.exit(7)
        time.sleep(600)
        """
    )
    assert ends == [(7, "", "")] * 2


def test_of_several_processes_that_fail_one_prints_why():
    ends = run(
        """
        code = shared.end(rank + 7)
        print("why" if code is None else "silent", flush=True)
        os._exit(rank + 7 if code is None else code)
        """,
        num_ranks=3,
    )
    codes, printed, _ = zip(*ends, strict=True)
    assert printed.count("why\n") == 1
    assert set(printed) <= {"why\n", "silent\n", ""}, "a process that ends before it prints is silent too"
    assert set(codes) == {printed.index("why\n") + 7}


def test_the_others_end_when_the_process_that_holds_the_store_is_killed():
    (first, *_), second = run("rank == 0 and os.kill(os.getpid(), 9); time.sleep(600)")
    assert first == -9
    assert second[:2] == (1, "")


def test_missing_processes_are_reported_in_one_line():
    program = textwrap.indent(HEAD.replace("60.0", "1.0"), "    ")
    program = f"from sftmix.errors import InputError\ntry:{program}\nexcept InputError as error: print(error)"
    first, second = start_as("torchrun", ["-c", program])
    first.kill()
    line, _ = second.communicate(timeout=60)
    assert line.count("\n") == 1
    assert "the 2 processes of torchrun did not find each other at MASTER_ADDR:MASTER_PORT=127.0.0.1:" in line
