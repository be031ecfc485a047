"""What tests of evaluation share."""

import pytest

from sftmix.evaluation.judge import calls


@pytest.fixture
def no_waiting(monkeypatch):
    """Retries come at once."""
    monkeypatch.setattr(calls, "FIRST_WAIT_SECONDS", 0.001)
