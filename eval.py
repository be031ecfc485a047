"""Evaluate a finished run, or any Hugging Face folder: `python eval.py` without arguments says how."""

import sys
import textwrap

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sftmix.cli import program as cli
from sftmix.config.load import typed
from sftmix.errors import ConfigError
from sftmix.evaluation.schema import SUITES, schema_of

USAGE = """\
{suites}
python eval.py suite=all judge=fake limit=5                 the paper's suites and suite=offline, on the newest run

run=      a run's folder, any Hugging Face folder, or a hub id; without it the newest run under root=runs
judge=    none, gpt41, openai_compatible (judge.base_url=, judge.model=), fake; dry_run=true says what it would cost
bench=    a folder with the published question files; without it they are fetched
generate= hf; vllm: vLLM's engine in this process; or openai: a server that has the model (vllm serve FOLDER)
devices=  number of GPUs that share the questions, all visible ones by default; with device=cpu, of processes
limit=    the first questions of each benchmark; suite.rounds=1 and suite.max_new_tokens=128 make it quicker still

python eval.py suite=NAME --help explains every setting of a suite, --cfg job prints their values"""
LINE, LEFT = 120, 60


def _usage() -> str:
    """Return what the program can do, with the commands of every suite."""
    lines: list[str] = []
    for suite in SUITES.values():
        for arguments, result in suite.usage.items():
            first, *more = textwrap.wrap(result, LINE - LEFT)
            lines += [f"python eval.py {arguments}".ljust(LEFT) + first, *(" " * LEFT + line for line in more)]
    return USAGE.format(suites="\n".join(lines))


def _schema() -> type:
    """The dataclass of the suite that the command line names."""
    name = next((a.partition("=")[2] for a in sys.argv[1:] if a.startswith("suite=")), "all")
    return schema_of(name if name in SUITES else "all")


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(cfg: DictConfig) -> None:
    """Check what is asked for, then evaluate."""
    schema = _schema()
    with cli.errors_in_one_line(schema):
        if cli.explained(_usage(), cfg, schema):
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
            print(_usage())
            sys.exit()
        if not any(a.startswith(("suite=", "--")) for a in sys.argv[1:]):
            raise ConfigError(f"suite has no value, expected suite={', '.join([*SUITES, 'all'])}")
    cli.run(main, _schema())
