"""Run the recipe: compose the configuration, check it, run its stages. `python train.py --help` lists the choices."""

import sys
from contextlib import ExitStack

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sftmix import cli
from sftmix.boundary import from_hydra
from sftmix.errors import ConfigError
from sftmix.training.stopping import StopRequest


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Check the configuration, then run its stages."""
    with cli.errors_in_one_line(), ExitStack() as stack:
        config = from_hydra(cfg)
        stack.enter_context(StopRequest(["SIGTERM", config.trainer.stop_signal]).listening())
        overrides = list(HydraConfig.get().overrides.task)
        if config.mode == "list":
            from sftmix.sweep.sweep import run_sweep

            sys.exit(run_sweep("sweep", overrides, [()], lambda _: config))
        for override in overrides:
            if override.startswith("sweep"):
                raise ConfigError(f"{override}: this is one run, a sweep has -m or ablation=")
        if config.mode == "certify":
            from sftmix.stages.certify import certify

            certificate = certify(config)
            print(certificate.table())
            sys.exit(0 if certificate.holds else 1)
        from sftmix.reports.summary import summarize
        from sftmix.stages.recipe import run_recipe

        plan = run_recipe(config)
        if config.mode == "confidence":
            return
        confidence = plan.confidence.folder if plan.confidence and plan.confidence.is_complete else None
        baseline = plan.baseline.folder if plan.baseline.is_complete and plan.baseline != plan.target else None
        print(summarize(plan.target.folder, confidence, baseline))


if __name__ == "__main__":
    cli.run(main, stop_signals=("SIGTERM",))
