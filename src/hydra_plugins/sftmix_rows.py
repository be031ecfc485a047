"""Hydra's sweeper that sees all rows of a sweep at once: what Hydra wants of a plugin; `sftmix.sweep` does the work."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


@dataclass
class RowsConfig:
    """What an ablation's file may set under `hydra.sweeper`.

    Attributes:
        params: a grid: values, separated by commas, of each key.
        rows: lists of overrides, one a row; with a grid, each meets all of it.
    """

    _target_: str = "hydra_plugins.sftmix_rows.Rows"
    params: dict[str, str] | None = None
    rows: list[list[str]] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="rows", node=RowsConfig, provider="sftmix")


class Rows(Sweeper):
    """Hands the rows of a sweep, composed and checked, to `sftmix.sweep`."""

    def __init__(self, params: Any = None, rows: Any = None) -> None:
        """Keep what the file says."""
        self.params = dict(params or {})
        self.rows = [list(row) for row in rows or []]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composes; each row is a process of its own, so the task is not called here."""
        self.config, self.loader = config, hydra_context.config_loader

    def sweep(self, arguments: list[str]) -> Any:
        """Run, list or submit the rows; ends the process with 1 where one failed."""
        from sftmix.cli.arguments import composed_by
        from sftmix.cli.program import check_hydra
        from sftmix.quoting import key_of
        from sftmix.sweep.rows import expand
        from sftmix.sweep.sweep import run_sweep

        check_hydra(self.config.hydra)
        parser = OverridesParser.create(config_loader=self.loader)
        choices = OmegaConf.to_container(self.config.hydra.runtime.choices)
        assert isinstance(choices, dict)
        name = str(choices.get("ablation") or "none")
        common, rows = expand(arguments, self.params, self.rows, parser.parse_overrides)
        code = run_sweep(
            "sweep" if name == "none" else name,
            common,
            rows,
            self._compose,
            composed_by=composed_by(sys.argv[1:]),
            single=name != "none" or not any(key_of(o) == "hydra.mode" for o in self.config.hydra.overrides.hydra),
        )
        if code:
            sys.exit(code)

    def _compose(self, overrides: Sequence[str]) -> Any:
        """The checked configuration of a row.

        Raises:
            ConfigError: the key, the value, what is allowed.
        """
        from sftmix.cli.program import explain_composition
        from sftmix.config.load import from_hydra
        from sftmix.errors import ConfigError

        try:
            cfg = self.loader.load_sweep_config(self.config, list(overrides))
        except HydraException as error:
            raise ConfigError(explain_composition(error, [*sys.argv[1:], *overrides])) from None
        with open_dict(cfg):
            del cfg["hydra"]
        return from_hydra(cfg)
