"""Evaluate a finished run, or any Hugging Face folder: `python eval.py` without arguments says how."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sftmix.cli import program as cli
from sftmix.config.load import typed
from sftmix.errors import ConfigError
from sftmix.evaluation.schema import SUITES, schema_of

USAGE = """\
python eval.py run=runs/RUN suite=medical                   MedQA, MedQA-5, PubMedQA, MedMCQA, three-shot, three rounds
python eval.py run=runs/RUN suite=mt_bench judge=gpt41      80 questions of two turns, rated 1 to 10; five rounds
python eval.py run=runs/RUN suite=alpaca_eval judge=gpt41   805 answers against a baseline's: WR and LC WR; five rounds
python eval.py suite=alpaca_eval suite.annotations=FILE     scores of existing judgments; no judge is asked
               suite.outputs=FILE suite.baseline=FILE suite.gamed=FILE
python eval.py suite=human a=runs/ONE b=runs/OTHER          a page for blind judging by people
python eval.py suite=human 'suite.judgments=[FILE,FILE]'    their result
python eval.py run=runs/RUN suite=offline                   held-out loss, calibration, length: no judge
python eval.py suite=all judge=fake limit=5                 all but the human one, quickly, on the newest run

run=      a run's folder, any Hugging Face folder, or a hub id; without it the newest run under root=runs
judge=    none, gpt41, openai_compatible (judge.base_url=, judge.model=), fake; dry_run=true says what it would cost
bench=    a folder with the published question files; without it they are fetched
generate= hf, or openai: a server that has the model (vllm serve FOLDER)
limit=    the first questions of each benchmark; suite.rounds=1 and suite.max_new_tokens=128 make it quicker still

python eval.py suite=NAME --help explains every setting of a suite, --cfg job prints their values"""


def _schema() -> type:
    """The dataclass of the suite that the command line names."""
    name = next((a.partition("=")[2] for a in sys.argv[1:] if a.startswith("suite=")), "all")
    return schema_of(name if name in SUITES else "all")


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(cfg: DictConfig) -> None:
    """Check what is asked for, then evaluate."""
    schema = _schema()
    with cli.errors_in_one_line(schema):
        if cli.explained(USAGE, cfg, schema):
            return
        config = typed(cfg, schema)
        cli.check_hydra(HydraConfig.get())
        from sftmix.evaluation.run import run_suites

        sys.exit(run_suites(config, HydraConfig.get().overrides.task))


if __name__ == "__main__":
    asked = {"--help", "-h"} & set(sys.argv)
    if asked and not any(a.startswith("suite=") for a in sys.argv[1:]):
        sys.argv.append("suite=all")
    with cli.errors_in_one_line():
        if len(sys.argv) == 1:
            print(USAGE)
            sys.exit()
        if not any(a.startswith(("suite=", "--")) for a in sys.argv[1:]):
            raise ConfigError(f"suite has no value, expected suite={', '.join(SUITES)}")
    cli.run(main, _schema())
