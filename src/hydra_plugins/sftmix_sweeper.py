"""Hydra's sweeper plugin: it hands all runs of a sweep at once to `sftmix.sweep`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class SweeperConfig:
    """Fields that the file of an ablation may set under `hydra.sweeper`."""

    _target_: str = "hydra_plugins.sftmix_sweeper.SFTMixSweeper"
    params: dict[str, str] | None = None  # A grid: values of each key, separated by commas
    runs: list[list[str]] | None = None  # Overrides of each run. With a grid, each run is combined with all of the grid


ConfigStore.instance().store(group="hydra/sweeper", name="sftmix", node=SweeperConfig, provider="sftmix")


class SFTMixSweeper(Sweeper):
    """Composes and checks the runs of a sweep before any of them is started."""

    def __init__(self, params: Any = None, runs: Any = None) -> None:
        self.params = dict(params or {})
        self.runs = [list(run) for run in runs or []]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the config and its loader. The task function is not called: each run is a separate process."""
        self.config, self.loader = config, hydra_context.config_loader

    def sweep(self, arguments: list[str]) -> Any:
        """Run, list or submit the runs. Exit with code 1 if a run failed."""
        from sftmix.cli.arguments import composed_by
        from sftmix.cli.program import check_hydra, explain_composition
        from sftmix.config.load import from_hydra
        from sftmix.errors import ConfigError
        from sftmix.quoting import key_of
        from sftmix.sweep.jobs import expand
        from sftmix.sweep.sweep import run_sweep

        def compose(overrides: Sequence[str]) -> Any:
            try:
                cfg = self.loader.load_sweep_config(self.config, list(overrides))
            except HydraException as error:
                raise ConfigError(explain_composition(error, [*sys.argv[1:], *overrides])) from None
            with open_dict(cfg):
                del cfg["hydra"]
            return from_hydra(cfg)

        check_hydra(self.config.hydra)
        parser = OverridesParser.create(config_loader=self.loader)
        name = str(self.config.hydra.runtime.choices.get("ablation") or "none")
        common, runs = expand(arguments, self.params, self.runs, parser.parse_overrides)
        code = run_sweep(
            "sweep" if name == "none" else name,
            common,
            runs,
            compose,
            composed_by=composed_by(sys.argv[1:]),
            single=name != "none" or not any(key_of(o) == "hydra.mode" for o in self.config.hydra.overrides.hydra),
        )
        if code:
            sys.exit(code)
