"""What the dashboard of an ablation holds, without a network; what is said where it cannot be published."""

import importlib
import json
import os
import subprocess
import sys

import pytest

from paths import ROOT
from sftmix.errors import InputError
from sftmix.reports.dashboard import build_dashboard, publish

CLAIM = "mu = 0.2 is best: <b>both</b> above and below it\x1b[31m the loss\nis higher."


def built(**changes):
    arguments = {"title": "Table 9: mu", "claim": CLAIM, "project": "sftmix", "entity": "lab", "groups": ["mu-1"]}
    return build_dashboard("mu", **{**arguments, **changes})


@pytest.fixture
def sent(monkeypatch):
    """What would be sent: the package asks the server for the project's number alone."""
    pytest.importorskip("wandb_workspaces")
    built()
    interface = importlib.import_module("wandb_workspaces.reports.v2.interface")
    monkeypatch.setattr(interface, "_get_api", lambda: None)
    monkeypatch.setattr(interface, "execute_graphql", lambda *_: {"project": {"internalId": "number"}})

    def of(report):
        spec = report._to_model().spec.model_dump(by_alias=True, exclude_none=True)
        (grid,) = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
        return spec["blocks"], grid["metadata"]

    return of


def test_it_shows_the_runs_of_the_groups_and_no_other(sent):
    for groups in (["mu-1"], ["a'b", 'c"d', "back\\slash"], ["x') or Metric('State') in ('y"]):
        _, grid = sent(built(groups=groups))
        (runset,) = grid["runSets"]
        assert runset["project"]["entityName"] == "lab"
        assert runset["project"]["name"] == "sftmix"
        found = {f["key"]["name"]: (f["op"], f["value"]) for f in runset["filters"]["filters"]}
        assert found == {"jobType": ("=", "target"), "group": ("IN", groups)}


def test_its_panels_are_losses_diagnostics_and_the_bar_by_half(sent):
    _, grid = sent(built())
    panels = grid["panelBankSectionConfig"]["panels"]
    lines = [p["config"] for p in panels if p["viewType"] == "Run History Line Plot"]
    assert {line["xAxis"] for line in lines} == {"trainer/step"}
    diagnostics = (
        "token_share",
        "loss",
        "ntp_loss_confident",
        "ntp_loss_unconfident",
        "grad_norm_ratio",
        "grad_cosine",
        "grad_span_cosine",
    )
    drawn = [key for line in lines for key in line["metrics"]]
    assert drawn[:2] == ["train/loss", "val/loss"]
    assert sorted(drawn[2:]) == sorted(f"mixup/{name}" for name in diagnostics)
    bars = [p["config"]["metrics"] for p in panels if p["viewType"] == "Bar Chart"]
    assert bars[0] == ["val/loss_confident", "val/loss_unconfident"]
    assert [p["viewType"] for p in panels][-1] == "Run Comparer"
    places = [(p["layout"]["x"], p["layout"]["y"]) for p in panels]
    assert len(set(places)) == len(panels)
    feed = grid["runSets"][0]["runFeed"]
    assert {"summary:val/loss_confident", "summary:metrics/val_loss", "config:seed.value"} <= set(feed["columnOrder"])


def test_its_claim_is_plain_text(sent):
    blocks, _ = sent(built())
    paragraphs = [b["children"][0]["text"] for b in blocks if b["type"] == "paragraph"]
    assert "mu = 0.2 is best: <b>both</b> above and below it\\x1b[31m the loss\\nis higher." in paragraphs
    assert {block["type"] for block in blocks} == {"heading", "paragraph", "panel-grid"}, "nothing reads it as markup"


def test_what_is_missing_is_told_in_one_line(monkeypatch):
    with pytest.raises(InputError, match="dashboard=mu: no group"):
        built(groups=[])
    with pytest.raises(InputError, match="dashboard=mu: no entity"):
        built(entity="")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.delitem(sys.modules, "wandb_workspaces.reports.v2", raising=False)
    monkeypatch.delitem(sys.modules, "wandb_workspaces.reports", raising=False)
    with pytest.raises(InputError, match=r"pip install 'sftmix\[dashboard\]'"):
        built()


def test_publishing_without_a_key_says_how_to_log_in(monkeypatch):
    import wandb

    class Refused:
        entity, project, url = "lab", "sftmix", "https://example.org/report"

        def save(self):
            raise ValueError("Run set 'mu' project 'lab/sftmix' not found.\nmore")

    def no_key():
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "Api", no_key)
    with pytest.raises(InputError, match=r"No API key configured.*log in with `wandb login`"):
        publish(Refused())
    monkeypatch.setattr(wandb, "Api", lambda: None)
    with pytest.raises(InputError, match=r"dashboard: lab/sftmix cannot be written to .*not found") as told:
        publish(Refused())
    assert "more" not in str(told.value)
    monkeypatch.setattr(Refused, "save", lambda _: None)
    assert publish(Refused()) == "https://example.org/report"


ENTITY = ("logger=wandb", "logger.wandb.entity=lab")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["dashboard=nosuch", *ENTITY], "config error: dashboard=nosuch: no such table, expected one of alpha, "),
        (["dashboard=mu"], "config error: dashboard= requires logger=wandb logger.wandb.entity=NAME, the owner of the"),
        (["dashboard=alpha", *ENTITY], "config error: dashboard=alpha: no sweep of it"),
    ],
)
def test_what_the_command_lacks_is_one_line_before_anything_heavy(light_programs, given, says, tmp_path):
    done = light_programs.run(
        "report.py", *given, f"root={tmp_path}", cwd=tmp_path, heavy=("torch", "lightning", "wandb_workspaces")
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_without_a_login_the_command_says_how_to_log_in(tmp_path):
    (tmp_path / "sweeps/mu-1").mkdir(parents=True)
    manifest = {"name": "mu", "command": "python train.py ablation=mu", "common": [], "composed_by": []}
    manifest |= {"runs": [], "shared": []}
    (tmp_path / "sweeps/mu-1/manifest.json").write_text(json.dumps(manifest))
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_API_KEY"}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    command = [sys.executable, str(ROOT / "report.py"), "dashboard=mu", *ENTITY, f"root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "(log in with `wandb login`)" in done.stderr.splitlines()[-1]
