"""Preview data before training, and report on runs: `python report.py` without arguments shows how."""

import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from sftmix.cli import program as cli
from sftmix.cli.arguments import composed_by
from sftmix.config.load import from_hydra
from sftmix.config.schema import Config, ReportConfig
from sftmix.errors import ConfigError

USAGE = """\
python report.py view=examples data=... model=...      the data as the model will see it, before training; n=3
python report.py table=mu                              a table of the paper with the runs under root beside it; settings
                                                       of train.py (model=tiny data=demo) select runs
python report.py sweep=runs/sweeps/FOLDER              the runs of a sweep by held-out loss
python report.py 'diff=[runs/ONE,runs/OTHER]'          in which fields two runs differ
python report.py 'compare=[runs/ONE,runs/OTHER]'       whether two recipes differ, over all of their seeds; needs
                                                       pip install 'sftmix[eval]'; margin=NATS: is the loss lower by at
                                                       least as much; subsets=FOLDER: whose split gives the subsets
python report.py 'curves=[runs/ONE,runs/OTHER]'         training curves side by side, with all of their seeds
python report.py rerun=runs/RUN                        the command that repeats a run
python report.py page=runs/RUN                         the page of a run: one HTML file with losses, curves, data
                                                       report, sample answers, metadata; the data map is beside it
python report.py map=runs/RUN                          the data map of a run or of a folder of scores: one HTML file
                                                       with all examples, opened from disk; output=FILE chooses the file
python report.py dashboard=mu                          the table's dashboard at Weights & Biases, published: needs an
                                                       account (`wandb login`) and pip install 'sftmix[dashboard]'
python report.py figure=tsne run=runs/RUN              Figure 1: do the k=2500 most and least confident examples lie
                                                       apart; at=prompt or response, model=... of the hidden states
python report.py figure=confidence run=runs/RUN        Figure 3: confidence by=group or source
python report.py topics=runs/RUN                       what the k=2500 most and least confident examples are about;
                                                       spacy=PIPELINE, labels=FILE. topics= and figure=tsne need
                                                       pip install 'sftmix[figures]'
python report.py 'stability=[runs/ONE,runs/OTHER]'     how far splits agree over seeds, references, checkpoints; also
                                                       random, length
python report.py study=PROTOCOL.yaml subsets=FOLDER    the verdict on each claim that a protocol has written down before
                                                       the runs under root, with a figure and the numbers of each seed
format=text, markdown, latex or csv                    of a table, a sweep, a comparison or a study"""

VIEWS = ("examples",)
ACTIONS = (
    *("view", "table", "leaderboard", "diff", "curves", "compare", "rerun", "page", "map", "dashboard"),
    *("figure", "topics", "stability", "study"),
)
OWN = (*ACTIONS, "n", "format", "output", "run", "k", "at", "by", "spacy", "labels", "margin", "subsets")
READERS = {  # reports that use the key
    "n": ("view",),
    "format": ("table", "leaderboard", "compare", "study"),
    "output": ("page", "map"),
    "run": ("figure",),
    "k": ("figure", "topics"),
    "at": ("figure",),
    "by": ("figure",),
    "spacy": ("topics",),
    "labels": ("topics",),
    "margin": ("compare",),
    "subsets": ("compare", "study"),
}
CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="report")
def main(cfg: DictConfig) -> None:
    """Check which report is requested, then print it."""
    with cli.errors_in_one_line():
        if cli.explained(
            f"{USAGE}\n\nThe settings of a view are those of python train.py --help",
            cfg,
            ReportConfig,
            only=ReportConfig,
        ):
            return
        cli.check_hydra(HydraConfig.get())
        overrides = list(HydraConfig.get().overrides.task)
        given = [o for o in overrides if o.partition("=")[0] not in OWN]
        with open_dict(cfg):
            asked = {key: cfg.pop(key) for key in OWN}
        action = _action(asked, [o.partition("=")[0] for o in overrides])
        if action == "view":
            _view(asked["view"], asked["n"], cfg)
        elif action == "dashboard":
            _dashboard(str(asked["dashboard"]), from_hydra(cfg))
        elif action == "table":
            _table(str(asked["table"]), str(asked["format"]), given, _root(cfg))
        elif action == "study":
            _study(asked, given, _root(cfg))
        elif action == "page":
            _page(asked, given, cfg)
        elif action in ("figure", "topics", "stability"):
            _draw(action, asked, given, cfg)
        else:
            _read(action, asked, given, _root(cfg))


def _action(asked: dict[str, object], keys: Sequence[str]) -> str:
    """Return the one requested report; a key that the report does not use is an error."""
    actions = [key for key in ACTIONS if asked[key] is not None]
    if len(actions) != 1:
        shown = ", ".join(f"{_written(key)}={asked[key]}" for key in actions) or "no report is requested"
        raise ConfigError(f"{shown}: expected one of {', '.join(map(_written, ACTIONS))}")
    for key, readers in READERS.items():
        if key in keys and actions[0] not in readers:
            raise ConfigError(f"{key}={asked[key]}: {_written(actions[0])}= does not read it")
    return actions[0]


def _written(action: str) -> str:
    return "sweep" if action == "leaderboard" else action


def _view(view: object, n: object, cfg: DictConfig) -> None:
    if view not in VIEWS:
        raise ConfigError(f"view={view}: expected one of {', '.join(VIEWS)}")
    if not isinstance(n, int) or n < 1:
        raise ConfigError(f"n={n}: expected a number of examples, at least 1")
    config = from_hydra(cfg)
    from sftmix.reports.preview import prepare_preview, show

    show(prepare_preview(config), n)


def _dashboard(name: str, config: Config) -> None:
    from sftmix.reports.tables.paper import read_paper
    from sftmix.sweep.store import find_sweeps

    if name not in _ablations():
        raise ConfigError(f"dashboard={name}: no such table, expected one of {', '.join(_ablations())}")
    wandb = config.wandb or {}
    if wandb.get("entity") is None:
        raise ConfigError("dashboard= requires logger=wandb logger.wandb.entity=NAME, the owner of the project")
    published = read_paper().tables.get(name)
    sweeps = [sweep for sweep in find_sweeps(Path(config.root))[0] if sweep.name == name]
    if not sweeps:
        raise ConfigError(f"dashboard={name}: no sweep of it under root={config.root}, run train.py ablation={name}")
    title, claim = (f"Table {published.number}, {published.title}", published.claim) if published else (name, "none")
    from sftmix.reports.dashboard import build_dashboard, publish  # after the checks: the import takes seconds

    dashboard = build_dashboard(
        name,
        title=title,
        claim=claim,
        project=wandb["project"],
        entity=wandb["entity"],
        groups=[sweep.folder.name for sweep in sweeps],
    )
    print(publish(dashboard))


def _ablations() -> list[str]:
    return sorted(file.stem for file in (CONF / "ablation").glob("*.yaml") if file.stem != "none")


def _table(name: str, form: str, given: Sequence[str], root: Path) -> None:
    from sftmix.reports.page import write_pages
    from sftmix.reports.tables.found_runs import with_found_runs
    from sftmix.reports.tables.table import table
    from sftmix.sweep.store import find_sweeps

    sweeps, unreadable = find_sweeps(root)
    where = composed_by(sys.argv[1:])
    sweeps, left_out = with_found_runs(name, sweeps, root, given, where)
    lines = [*unreadable, *left_out]
    pages = table(name, sweeps, given=given, ablations=_ablations(), unreadable=lines, composed_by=where)
    print(write_pages(pages, form, styled=_is_terminal()))


def _study(asked: dict[str, object], given: Sequence[str], root: Path) -> None:
    from sftmix.artifacts.artifact import folder_of
    from sftmix.reports.page import write_pages
    from sftmix.reports.study.page import study_report
    from sftmix.reports.study.protocol import read_protocol
    from sftmix.reports.tables.groups import subsets_of_scores

    protocol = read_protocol(Path(str(asked["study"])).expanduser())
    if asked["subsets"] is None:
        raise ConfigError("study= requires subsets=FOLDER, a run or a folder of scores whose split gives the subsets")
    subset_of = subsets_of_scores(folder_of(str(asked["subsets"]), root, "subsets"), root)
    page, folder = study_report(protocol, root, subset_of, given, composed_by(sys.argv[1:]))
    written = write_pages([page], str(asked["format"]), styled=_is_terminal())
    print(written if asked["format"] == "csv" else f"{written}\n\nwritten to {folder}")


def _draw(action: str, asked: dict[str, object], given: Sequence[str], cfg: DictConfig) -> None:
    """Print a report on the scores of runs, and where its figure and its numbers are."""
    from sftmix.reports.figures.actions import draw
    from sftmix.reports.page import write_pages

    changes_model = any(re.match(r"model(\.\w+)*=", override) for override in given)
    others = [o for o in given if not re.match(r"(root|trainer\.progress_bar|model(\.\w+)*)=", o)]
    if others or (changes_model and asked["figure"] != "tsne"):
        what = next(iter(others), None) or next(o for o in given if o.startswith("model"))
        raise ConfigError(f"{what}: {action}= reads folders, this setting of train.py has no effect")
    model = from_hydra(cfg).model if changes_model else None
    page, folder = draw(action, asked, model, _root(cfg), show_progress=bool(cfg.trainer.progress_bar))
    print(f"{write_pages([page], 'text', styled=_is_terminal())}\n\nwritten to {folder}")


def _page(asked: dict[str, object], given: Sequence[str], cfg: DictConfig) -> None:
    from sftmix.artifacts.artifact import folder_of
    from sftmix.cli.run_page import write_run_page

    _refuse_settings("page", given)
    folder = folder_of(str(asked["page"]), _root(cfg), "page")
    written = write_run_page(folder, _root(cfg), _output(asked))
    print(f"{written.file}: {written.in_words}")


def _refuse_settings(action: str, given: Sequence[str]) -> None:
    others = [override for override in given if not override.startswith("root=")]
    if others:
        raise ConfigError(f"{others[0]}: {_written(action)}= reads folders, settings of train.py have no effect")


def _output(asked: dict[str, object]) -> Path | None:
    return None if asked["output"] is None else Path(str(asked["output"])).expanduser()


def _read(action: str, asked: dict[str, object], given: Sequence[str], root: Path) -> None:
    """Print a report on existing folders."""
    from sftmix.artifacts.artifact import folder_of
    from sftmix.reports.page import write_pages
    from sftmix.sweep.store import SWEEPS

    _refuse_settings(action, given)
    if action == "leaderboard":
        from sftmix.reports.tables.leaderboard import leaderboard
        from sftmix.sweep.store import read_sweep

        sweep = read_sweep(folder_of(str(asked[action]), root / SWEEPS, "sweep"))
        print(write_pages([leaderboard(sweep)], str(asked["format"]), styled=_is_terminal()))
    elif action in ("diff", "curves", "compare"):
        runs = asked[action]
        runs = [runs] if isinstance(runs, str) else list(runs)  # type: ignore[call-overload]
        if action != "curves" and len(runs) != 2:
            raise ConfigError(f"{action}={asked[action]}: expected two runs, '{action}=[ONE,OTHER]'")
        folders = [folder_of(str(run), root, action) for run in runs]
        if action == "diff":
            from sftmix.reports.diff import diff

            print(diff(*folders))
        elif action == "curves":
            from sftmix.reports.curves import compare_curves

            print(compare_curves(folders, root))
        else:
            from sftmix.reports.tables.compare import compare

            page = compare(*folders, **_rule(asked, root))
            print(write_pages([page], str(asked["format"]), styled=_is_terminal()))
    elif action == "map":
        from sftmix.reports.data_map.page import write_map

        written = write_map(folder_of(str(asked["map"]), root, "map"), root, _output(asked))
        print(f"{written.file}: {written.in_words}")
    else:
        from sftmix.provenance.rerun import rerun

        print(rerun(folder_of(str(asked["rerun"]), root, "rerun")))


def _rule(asked: dict[str, object], root: Path) -> dict[str, Any]:
    """Return the margin and the subsets by which runs are compared."""
    from sftmix.artifacts.artifact import folder_of
    from sftmix.reports.tables.groups import subsets_of_scores

    margin, subsets = asked["margin"], asked["subsets"]
    if margin is not None and not (isinstance(margin, int | float) and 0 < margin < math.inf):
        raise ConfigError(f"margin={margin}: expected a number of nats per token above 0")
    subset_of = None if subsets is None else subsets_of_scores(folder_of(str(subsets), root, "subsets"), root)
    return {"margin": margin, "subset_of": subset_of}


def _root(cfg: DictConfig) -> Path:
    return Path(os.path.expanduser(str(cfg.root)))


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def _for_hydra(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as Hydra reads them: `sweep` is the name of a config group, so the key is renamed.

    Raises:
        ConfigError: If several runs or another primary config are requested.
    """
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "ablation" or argument in ("-m", "--multirun"):
            raise ConfigError(f"{argument}: a report runs nothing, choose table={value or 'NAME'}")
        if key in ("--config-name", "-cn", "--config-path", "-cp"):
            raise ConfigError(f"{argument}: report.py has its own primary config, use --config-dir")
    return [re.sub(r"^sweep=(?!null$|$)", "leaderboard=", argument) for argument in arguments]


if __name__ == "__main__":
    with cli.errors_in_one_line():
        if len(sys.argv) == 1:
            print(USAGE)
            sys.exit()
        sys.argv[1:] = _for_hydra(sys.argv[1:])
    cli.run(main, ReportConfig)
