"""The dashboard of an ablation at Weights & Biases: a report over the runs of its sweeps.

The dashboard is built without a network; publishing needs an account. It shows the metrics that training logs.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from sftmix.errors import InputError, first_line
from sftmix.terminal import one_line
from sftmix.training.loggers import BEST, STEP

LONGEST_TITLE = 128  # Characters
WIDTH, HEIGHT = 12, 8  # Of a panel; two panels are side by side
LEGEND = "${run:displayName}"
LINES = (  # Title, metrics
    ("Training loss (nats per response token)", ("train/loss",)),
    ("Held-out loss (nats per response token)", (BEST,)),
    ("Share of response tokens that are mixed", ("mixup/token_share",)),
    ("Mixup loss (nats per mixed token)", ("mixup/loss",)),
    ("NTP loss of the confident subset", ("mixup/ntp_loss_confident",)),
    ("NTP loss of the unconfident subset", ("mixup/ntp_loss_unconfident",)),
    ("Gradient at the head: norm of mu times Mixup's over NTP's", ("mixup/grad_norm_ratio",)),
    ("Gradient at the head: cosine of Mixup's and NTP's", ("mixup/grad_cosine",)),
    ("Gradient at the head: cosine of Mixup's and the span of the subsets' NTP", ("mixup/grad_span_cosine",)),
)
BARS = (
    ("Held-out loss by subset, at the end", ("val/loss_confident", "val/loss_unconfident")),
    ("Held-out loss, at the end", ("metrics/val_loss",)),
)
COLUMNS = (
    "run:displayName",
    "run:state",
    "config:seed.value",
    "summary:metrics/val_loss",
    "summary:val/loss_confident",
    "summary:val/loss_unconfident",
    "summary:metrics/train_loss_last_step",
    "summary:metrics/seconds",
)


def build_dashboard(name: str, *, title: str, claim: str, project: str, entity: str, groups: Sequence[str]) -> Any:
    """Return a report of `wandb_workspaces`: claim, losses, effects of Mixup, losses by subset, and a table of runs.

    Args:
        name: Name of the ablation.
        entity: Owner of the project.
        groups: Names of the sweeps whose runs are shown.

    Raises:
        InputError: If there is no group or no entity, or the package is not installed.
    """
    if not groups:
        raise InputError(f"dashboard={name}: no group, expected at least one sweep")
    if not entity:
        raise InputError(f"dashboard={name}: no entity, expected the owner of project {project}")
    wr = _reports()
    targets = wr.Runset(
        entity=entity,
        project=project,
        name=one_line(name),
        filters=f"Metric('JobType') == 'target' and Metric('Group') in {list(groups)!r}",
        order=[wr.OrderBy("Name", ascending=True)],
        pinned_columns=[COLUMNS[0]],
        visible_columns=list(COLUMNS[1:]),
        lock_columns=True,
    )
    places = [wr.Layout(x=k % 2 * WIDTH, y=k // 2 * HEIGHT, w=WIDTH, h=HEIGHT) for k in range(len(LINES + BARS))]
    panels: list[Any] = [
        wr.LinePlot(title=what, x=STEP, y=list(keys), legend_template=LEGEND, layout=place)
        for (what, keys), place in zip(LINES, places, strict=False)
    ]
    panels += [
        wr.BarPlot(title=what, metrics=list(keys), legend_template=LEGEND, layout=place)
        for (what, keys), place in zip(BARS, places[len(LINES) :], strict=True)
    ]
    below = wr.Layout(x=0, y=places[-1].y + HEIGHT, w=2 * WIDTH, h=HEIGHT)
    panels.append(wr.RunComparer(diff_only=True, layout=below))
    return wr.Report(
        project=project,
        entity=entity,
        title=one_line(title)[:LONGEST_TITLE],
        description=f"ablation={one_line(name)}",
        blocks=[wr.H2("Claim"), wr.P(one_line(claim)), wr.H2("Runs"), wr.PanelGrid(runsets=[targets], panels=panels)],
        width="fluid",
    )


def publish(report: Any) -> str:
    """Save a dashboard at Weights & Biases and return its address.

    Raises:
        InputError: If there is no key, no such project, or no connection.
    """
    import wandb as client

    try:
        client.Api()  # fails without a key, before anything is sent
        report.save()
    except client.errors.UsageError as error:
        raise InputError(f"dashboard: {one_line(first_line(error))} (log in with `wandb login`)") from None
    except (client.errors.Error, ValueError) as error:
        where = f"{report.entity}/{report.project}"
        raise InputError(f"dashboard: {where} cannot be written to ({one_line(first_line(error))})") from None
    return str(report.url)


def _reports() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package uses deprecated features of pydantic
        try:
            import wandb_workspaces.reports.v2 as reports
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("wandb_workspaces"):
                raise
            raise InputError("a dashboard needs wandb-workspaces: pip install 'sftmix[dashboard]'") from None
    return reports
