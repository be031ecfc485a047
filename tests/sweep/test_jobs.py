"""Which jobs a sweep has: shared stages once, a row that is there not again."""

from pathlib import Path

import pytest

from sftmix.artifacts.manifest import MANIFEST
from sftmix.stages.plan import plan_run
from sftmix.sweep.jobs import DONE, WAITING, PlannedRun, plan_jobs


@pytest.fixture
def planned(compose, tmp_path):
    def plan(*rows, common=("model=tiny",)):
        made = []
        for own in rows:
            config = compose(*common, *own, f"root={tmp_path}")
            made.append(PlannedRun(tuple(own), config, plan_run(config)[1]))
        return made, *plan_jobs(made, common)

    return plan


def complete(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")


def test_rows_that_share_a_reference_wait_for_one_job(planned):
    _, shared, jobs = planned(["recipe.mixup.mu=0.1"], ["recipe.mixup.mu=0.5"], ["seed=3"])
    assert len(shared) == 1
    assert shared[0].arguments == ("model=tiny", "recipe.mixup.mu=0.1", "mode=confidence")
    assert [job.needs for job in jobs] == [shared] * 3


def test_with_mode_confidence_each_run_ends_after_scoring(planned):
    common = ("model=tiny", "mode=confidence")
    rows, shared, jobs = planned(["recipe.mixup.mu=0.1"], ["recipe.mixup.mu=0.5"], ["reference.seed=1"], common=common)
    assert shared == []
    assert [job.makes for job in jobs] == [row.plan.confidence for row in rows]
    assert jobs[0] is jobs[1]
    assert jobs[2].arguments == ("model=tiny", "reference.seed=1", "mode=confidence")
    assert jobs[2].config["mode"] == "confidence"


def test_another_reference_is_another_job(planned):
    _, shared, jobs = planned(["reference.seed=0"], ["reference.seed=1"])
    assert [job.needs for job in jobs] == [[shared[0]], [shared[1]]]


def test_the_ntp_row_that_is_the_reference_is_not_tuned_beside_it(planned):
    _, shared, (ntp, other, _) = planned(["recipe=ntp"], ["recipe=ntp", "seed=1"], ["recipe=sftmix"])
    assert ntp.needs == shared
    assert other.needs == []


def test_rows_that_mean_the_same_run_have_one_job(planned):
    _, _, jobs = planned(["recipe.mixup.mu=0.2"], ["seed=0"], ["seed=1"])
    assert jobs[0] is jobs[1]
    assert jobs[2] is not jobs[0]


def test_what_is_there_is_done_and_its_reference_is_not_wanted(planned):
    rows, shared, _ = planned(["recipe.mixup.mu=0.1"])
    assert shared[0].state == WAITING
    complete(rows[0].plan.target.folder)
    _, shared, jobs = planned(["recipe.mixup.mu=0.1"])
    assert (shared, jobs[0].state) == ([], DONE)


def test_the_commands_are_those_of_single_runs(planned):
    common = ("ablation=mu", "model=tiny", "sweep.jobs=2", "mode=train", "logger=wandb")
    made, shared, jobs = planned(["recipe.mixup.mu=0.1"], common=common[:2])
    shared, jobs = plan_jobs(made, common, single=True, group="mu-1")
    always = "python train.py ablation=mu model=tiny logger=wandb recipe.mixup.mu=0.1"
    assert jobs[0].command == f"{always} logger.wandb.group=mu-1 hydra.mode=RUN"
    assert shared[0].command == f"{always} mode=confidence logger.wandb.group=mu-1 hydra.mode=RUN"
