"""A dashboard of an ablation's runs at Weights & Biases, defined here and built with their own package."""

from collections.abc import Sequence
from typing import Any

from sftmix.errors import InputError

STEP = "trainer/step"
MISSING = "dashboard: it needs a package more, pip install 'sftmix[dashboard]'"


def build_dashboard(
    name: str, *, title: str, claim: str, project: str, entity: str, groups: Sequence[str], command: str
) -> Any:
    """The dashboard as a report of Weights & Biases, not saved yet: `wandb_workspaces.reports.v2.Report`.

    Args:
        name: of the ablation.
        title: what it is about.
        claim: what the paper, or the ablation, claims.
        project: where the runs are.
        entity: whose project it is; empty: the account's own.
        groups: names of the sweeps, as runs have them.
        command: what fills it.

    Raises:
        InputError: the package is not installed.
    """
    wr, expr = _packages()

    def runs(job_type: str, shown: str) -> Any:
        chosen = [expr.Metric("JobType") == job_type]
        if groups:
            chosen.append(expr.Metric("Group").isin(list(groups)))
        return wr.Runset(project=project, entity=entity, name=shown, filters=chosen)

    def lines(metric: str, shown: str, **more: Any) -> Any:
        return wr.LinePlot(title=shown, x=STEP, y=[metric], **more)

    def bars(metric: str, shown: str) -> Any:
        return wr.BarPlot(title=shown, metrics=[wr.SummaryMetric(metric)])

    targets = runs("target", "rows")
    halves = ("confident", "unconfident")
    return wr.Report(
        project=project,
        entity=entity,
        title=f"SFTMix: {title}"[:128],
        description=f"ablation={name}",
        width="fluid",
        blocks=[
            wr.P(f"Claim: {claim}"),
            wr.P(f"Filled by: {command} logger=wandb; sent by wandb sync."),
            wr.H2("Held-out loss, nats per response token"),
            wr.PanelGrid(
                runsets=[targets],
                panels=[
                    lines("val/loss", "all, while tuning"),
                    bars("val/loss.last", "all, at the end"),
                    *(bars(f"val/loss_{half}", f"{half} half, at the end") for half in halves),
                ],
            ),
            wr.H2("Training"),
            wr.PanelGrid(
                runsets=[targets],
                panels=[
                    lines("train/loss", "objective"),
                    lines("train/ntp_loss", "next-token prediction, nats per token of its own"),
                    lines("train/mixup_loss", "Mixup, nats per mixed token"),
                    lines("train/grad_norm", "norm of the gradient before clipping"),
                ],
            ),
            wr.H2("What Mixup does"),
            wr.PanelGrid(
                runsets=[targets],
                panels=[
                    lines("mixup/token_share", "share of the response tokens that are mixed"),
                    lines("mixup/grad_norm_ratio", "norm of its gradient over that of next-token prediction"),
                    lines("mixup/grad_cosine", "cosine between the two", range_y=(-1.0, 1.0)),
                    wr.LinePlot(
                        title="next-token prediction of each half", x=STEP, y=[f"mixup/ntp_loss_{h}" for h in halves]
                    ),
                    wr.MediaBrowser(title="lambda", media_keys=["mixup/lam"]),
                ],
            ),
            wr.H2("Confidence"),
            wr.PanelGrid(
                runsets=[runs("confidence", "scoring")],
                panels=[wr.MediaBrowser(title="how it is spread", media_keys=["confidence/histogram"])],
            ),
            wr.H2("Runs"),
            wr.PanelGrid(runsets=[targets, runs("reference", "references")], panels=[wr.RunComparer(diff_only=True)]),
        ],
    )


def publish(dashboard: Any) -> str:
    """Save a dashboard at Weights & Biases; its address.

    Raises:
        InputError: there is no account, or it cannot be reached.
    """
    import wandb

    if not wandb.api.api_key:
        raise InputError("dashboard: no key of Weights & Biases, log in with `wandb login`")
    try:
        dashboard.save()
    except Exception as error:  # their client raises errors of many kinds of its own
        raise InputError(f"dashboard: Weights & Biases refused it ({str(error).splitlines()[0]})") from None
    return str(dashboard.url)


def _packages() -> tuple[Any, Any]:
    try:
        from wandb_workspaces import expr
        from wandb_workspaces.reports import v2
    except ImportError:
        raise InputError(MISSING) from None
    return v2, expr
