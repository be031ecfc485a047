"""What tests of evaluation share."""

import pytest

from sftmix.evaluation import server


@pytest.fixture
def no_waiting(monkeypatch):
    """Retries come at once."""
    monkeypatch.setattr(server, "FIRST_WAIT_SECONDS", 0.001)
