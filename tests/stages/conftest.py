"""Runs of the pipeline in roots of their own."""

import shutil

import pytest


@pytest.fixture
def copy_of_run(small_run, tmp_path):
    """A copy of the small run's root, to add to."""
    config, plan = small_run
    shutil.copytree(config.root, tmp_path / "runs")
    return plan, tmp_path / "runs"
