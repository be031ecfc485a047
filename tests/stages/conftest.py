"""Runs of the recipe in roots of their own."""

import shutil

import pytest

from sftmix.stages.pipeline import run_pipeline


@pytest.fixture
def run(compose, small_overrides, tmp_path):
    """Run the recipe in a root of its own."""

    def ran(*overrides, root=tmp_path):
        config = compose(*small_overrides, f"root={root}", *overrides)
        return run_pipeline(config)

    return ran


@pytest.fixture
def copy_of_run(small_run, tmp_path):
    """A copy of the small run's root, to add to."""
    config, plan = small_run
    shutil.copytree(config.root, tmp_path / "runs")
    return plan, tmp_path / "runs"
