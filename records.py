"""File what was found: `python records.py run=FOLDER` (or sweep=FOLDER) writes `experiments/<date>_<name>/`."""

import sys
from pathlib import Path

from sftmix import cli
from sftmix.errors import ConfigError
from sftmix.records import record_run, record_sweep

USAGE = """\
python records.py run=runs/RUN [name=...]             a finished run as experiments/<date>_<name>/
python records.py sweep=runs/sweeps/SWEEP [name=...]  the rows of a sweep that are there
to=FOLDER                                             in the place of experiments"""
KEYS = ("run", "sweep", "name", "to")


def main(arguments: list[str]) -> None:
    """Write the record that is asked for, and say where."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    for key, value in given.items():
        if key not in KEYS or not value:
            raise ConfigError(f"{key}={value}: expected {', '.join(f'{key}=...' for key in KEYS)}")
    if ("run" in given) == ("sweep" in given):
        raise ConfigError("expected one of run=FOLDER and sweep=FOLDER")
    to = Path(given.get("to", Path(__file__).parent / "experiments")).expanduser()
    if "run" in given:
        folder = record_run(Path(given["run"]).expanduser(), to, given.get("name"))
    else:
        folder = record_sweep(Path(given["sweep"]).expanduser(), to, given.get("name"))
    print(f"written: {folder}")


if __name__ == "__main__":
    with cli.errors_in_one_line():
        if len(sys.argv) == 1:
            print(USAGE)
        else:
            main(sys.argv[1:])
