"""Compose the config, check it, and run its stages. `python train.py --help` explains the settings."""

import sys
from pathlib import Path

from sftmix.distributed.ranks import discard_output_of_followers, started_ranks
from sftmix.distributed.stopping import StopRequest, end_at_signals, end_with_sweep

if __name__ == "__main__":
    end_at_signals("SIGTERM", "SIGUSR2")  # before the imports, which take a second
    discard_output_of_followers()

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sftmix.artifacts.manifest import MANIFEST
from sftmix.cli import program as cli
from sftmix.cli.arguments import composed_by
from sftmix.config.load import from_hydra
from sftmix.config.schema import Config
from sftmix.errors import ConfigError, InputError
from sftmix.quoting import key_of
from sftmix.sweep import CONFIG_FILE

USAGE = """\
Tune a language model with the SFTMix recipe: a reference, its confidence on each example, then the target.

python train.py                                            the embedded model and data, a minute on a CPU
python train.py model=llama data=alpaca                    a run of the paper
python train.py model=local model.path=FOLDER model.lr=2e-5 data=own data.path=FILE.jsonl
                                                           your own model and data
python train.py -m recipe.mixup.mu=0.1,0.2 seed=0,1        a sweep: every combination
python train.py ablation=mu                                a table of the paper
python train.py experiment=quick                           a file of settings: conf/experiment/quick.yaml
... mode=list                                              what exists and what would be run
... mode=plan                                              memory, time and disk that it needs, without a GPU
... mode=check                                             a rehearsal in a minute: what would fail, fails now"""


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Check the config, then run its stages."""
    with cli.errors_in_one_line():
        if cli.explained(USAGE, cfg, sweeps=True):
            return
        config = from_hydra(cfg)
        cli.check_hydra(HydraConfig.get())
        overrides = list(HydraConfig.get().overrides.task)
        if config.mode in ("list", "plan"):
            from sftmix.sweep.sweep import run_sweep

            sys.exit(run_sweep("sweep", overrides, [()], lambda _: config, composed_by=composed_by(sys.argv[1:])))
        for override in overrides:
            if key_of(override).partition(".")[0] == "sweep":
                raise ConfigError(f"{override}: this is one run, a sweep has -m or ablation=")
        train(config, has_page=bool(config.trainer.page))


def train(config: Config, *, has_page: bool = False) -> None:
    """Run the stages of a checked config, print a summary, and write the page of the run if asked."""
    from sftmix.stages.rank import sharing_processes

    with StopRequest(["SIGTERM", config.trainer.stop_signal]).listening(), sharing_processes(config):
        _run(config, has_page)


def _run(config: Config, has_page: bool) -> None:
    if config.mode == "check":
        from sftmix.evaluation.servers import judge_in_words
        from sftmix.stages.rehearsal import rehearse

        results = rehearse(config, {"judge": lambda: judge_in_words(config.judge)})
        sys.exit(0 if all(result.is_passed for result in results) else 1)
    if config.mode == "certify":
        from sftmix.stages.invariance.check import check_invariance

        report = check_invariance(config)
        print(report.table())
        sys.exit(0 if report.holds else 1)
    from sftmix.stages.pipeline import run_pipeline

    plan = run_pipeline(config)
    if config.mode == "confidence":
        return
    from sftmix.reports.summary import summarize

    confidence = plan.confidence.folder if plan.confidence and plan.confidence.is_complete else None
    baseline = plan.baseline.folder if plan.baseline.is_complete and plan.baseline != plan.target else None
    print(summarize(plan.target.folder, confidence, baseline))
    started = started_ranks()
    if has_page and config.trainer.node_rank == 0 and (started is None or started.ranks.is_first):
        _write_page(plan.target.folder, Path(config.root))


def _write_page(run: Path, root: Path) -> None:
    """Write the page of a complete run, unless it is there, and print where it is."""
    page = root / "reports" / f"{run.name}.html"
    if not page.is_file() or page.stat().st_mtime < (run / MANIFEST).stat().st_mtime:
        from sftmix.cli.run_page import write_run_page

        try:
            write_run_page(run, root)
        except (InputError, OSError) as error:  # the run is complete, with its page or without
            print(f"\nno page was written: {error}\npython report.py page={run} writes it", flush=True)
            return
    print(f"\nThe run in one page\n  {page}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == [CONFIG_FILE]:  # a run of a sweep, or a run that is repeated: its config is composed
        from sftmix.sweep.manifest import read_config

        end_with_sweep()
        with cli.errors_in_one_line():
            sys.argv[1:], config = read_config(sys.argv[2:])
            train(config)
    else:
        cli.run(main, sweeps=True)
