"""Every name and type that `report.py` has beside the settings of `train.py`."""

from dataclasses import dataclass

from sftmix.config.fields import path_field
from sftmix.config.schema import Config


@dataclass(kw_only=True)
class ReportConfig(Config):
    """The whole configuration of `report.py`: exactly one of its reports is asked for."""

    view: str | None  # examples: the data as the model will see it, before training
    n: int  # examples that a view shows
    table: str | None  # name of an ablation: the paper's table with the runs of that ablation beside it
    leaderboard: str | None = path_field(always=True)  # (internal) written sweep=FOLDER
    diff: list[str] | None = path_field(always=True)  # two runs: the fields in which they differ
    compare: list[str] | None = path_field(always=True)  # two runs: whether their recipes differ, over all their seeds
    rerun: str | None = path_field(always=True)  # a run: the command that makes it again
    dashboard: str | None  # name of an ablation: publish its dashboard at Weights & Biases
    format: str  # of a table, sweep or comparison: text, markdown, latex or csv
