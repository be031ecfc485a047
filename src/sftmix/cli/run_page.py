"""Write the page of a run with what only a program knows: the default config, and the command that repeats the run."""

from pathlib import Path

import hydra

from sftmix.config.load import from_hydra
from sftmix.config.schema import to_dict
from sftmix.provenance.rerun import rerun
from sftmix.reports.run_page.page import Origin, WrittenPage, write_page


def write_run_page(folder: Path, root: Path, output: Path | None = None) -> WrittenPage:
    """Write the page of a run into `reports/` under the root, or into a given file. Hydra must be initialized.

    Raises:
        InputError: As `write_page`.
    """
    return write_page(folder, root, Origin(rerun, to_dict(from_hydra(hydra.compose("config")))), output)
