"""Look before you train: `python report.py view=examples data=... model=...`. Settings are those of train.py."""

import hydra
from omegaconf import DictConfig, open_dict

from sftmix import cli
from sftmix.boundary import from_hydra
from sftmix.errors import ConfigError

VIEWS = ("examples",)


@hydra.main(version_base="1.3", config_path="conf", config_name="report")
def main(cfg: DictConfig) -> None:
    """Check the configuration, then show the view."""
    with cli.errors_in_one_line():
        with open_dict(cfg):
            view, n = cfg.pop("view"), cfg.pop("n")
        if view not in VIEWS:
            raise ConfigError(f"view={view}: expected one of {', '.join(VIEWS)}")
        if not isinstance(n, int) or n < 1:
            raise ConfigError(f"n={n}: expected a number of examples, at least 1")
        config = from_hydra(cfg)
        from sftmix.reports.look import show
        from sftmix.stages.look import prepare_look

        show(n, **prepare_look(config)._asdict())


if __name__ == "__main__":
    cli.run(main)
