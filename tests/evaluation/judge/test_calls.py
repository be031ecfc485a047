"""An address is shown without anything that may be a key."""

import pytest

from sftmix.evaluation.judge.client import Server


@pytest.mark.parametrize(
    ("base_url", "shown"),
    [
        (None, "https://api.openai.com/v1"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://user:SECRET@host:80/v1?api-key=SECRET#SECRET", "http://host:80/v1"),
        ("https://a@SECRET@[::1]:8000/v1/", "https://[::1]:8000/v1/"),
    ],
)
def test_an_address_is_shown_by_scheme_host_port_and_path_only(base_url, shown):
    server = Server("judge x", "m", base_url, None, concurrency=1, max_retries=0, timeout=1.0)
    assert server.address == shown
