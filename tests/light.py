"""Programs of the repository as forks of a process that has imported Hydra and the config, so that a call takes less.

A fork sees only what a new process sees: arguments, environment, working directory, and modules that are not heavy.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from paths import ROOT

SERVER = """
import json, os, runpy, sys, traceback
import hydra.core.hydra_config, sftmix.cli.program, sftmix.config.load, sftmix.distributed.stopping

def be(call):
    code = 1
    os.environ.clear()
    os.environ.update(call["environment"])
    os.chdir(call["cwd"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(call[name], os.O_WRONLY), number)
    sys.argv = [call["program"], *call["arguments"]]
    try:
        runpy.run_path(call["program"], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    heavy = set(call["heavy"]) & set(sys.modules)
    if heavy:
        code = 3
        print("imported:", *heavy, file=sys.stderr)
    sys.stdout.flush()
    os._exit(code)

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        be(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class LightPrograms:
    """Runs one program at a time until `close`."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self, program: str, *arguments: str, cwd: Path, heavy: Collection[str] = ()
    ) -> "subprocess.CompletedProcess[str]":
        """Return how a program ended, and its outputs.

        Args:
            program: File name in the repository.
            arguments: Of the command line.
            cwd: Working directory.
            heavy: Modules that the program must not import. The exit code is 3 if one is imported.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.NamedTemporaryFile("r") as output, tempfile.NamedTemporaryFile("r") as errors:
            call = {"program": str(ROOT / program), "arguments": arguments, "cwd": str(cwd), "heavy": list(heavy)}
            call |= {"environment": dict(os.environ), "stdout": output.name, "stderr": errors.name}
            print(json.dumps(call), file=self._server.stdin, flush=True)
            code = int(self._server.stdout.readline())
            return subprocess.CompletedProcess([program, *arguments], code, output.read(), errors.read())

    def close(self) -> None:
        """End the process whose forks the programs are."""
        self._server.communicate()
