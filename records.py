"""Write records: `python records.py run=FOLDER` (or sweep=FOLDER) writes `experiments/<date>_<name>/`."""

import os
import sys
from pathlib import Path

from sftmix.cli import program as cli
from sftmix.errors import ConfigError
from sftmix.provenance.records import record_run, record_sweep

USAGE = """\
python records.py run=runs/RUN [name=...]             a finished run as experiments/<date>_<name>/
python records.py sweep=runs/sweeps/SWEEP [name=...]  the finished runs of a sweep
to=FOLDER                                             instead of experiments"""
KEYS = ("run", "sweep", "name", "to")


def main(arguments: list[str]) -> None:
    """Write the requested record and print its folder."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    for key, value in given.items():
        if key not in KEYS or not value:
            raise ConfigError(f"{key}={value}: expected {', '.join(f'{key}=...' for key in KEYS)}")
    if ("run" in given) == ("sweep" in given):
        raise ConfigError("expected one of run=FOLDER and sweep=FOLDER")
    to = _path(given.get("to", str(Path(__file__).parent / "experiments")))
    if "run" in given:
        folder = record_run(_path(given["run"]), to, given.get("name"))
    else:
        folder = record_sweep(_path(given["sweep"]), to, given.get("name"))
    print(f"written: {folder}")


def _path(text: str) -> Path:
    """Return a path; `~` is the home folder."""
    return Path(os.path.expanduser(text))


if __name__ == "__main__":
    with cli.errors_in_one_line():
        if len(sys.argv) == 1 or {"--help", "-h"} & set(sys.argv):
            print(USAGE)
        else:
            main(sys.argv[1:])
