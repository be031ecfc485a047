"""A server is told what is meant for it, and nothing that the environment has for another."""

import os

import pytest

from judges import KEY, ask, judge, requests
from loopback import loopback
from sftmix.evaluation.client import is_openai, make_client

OF_OPENAI = {
    "OPENAI_API_KEY": "sk-openai",
    "OPENAI_ADMIN_KEY": "sk-admin",
    "OPENAI_ORG_ID": "org-secret",
    "OPENAI_PROJECT_ID": "proj-secret",
    "OPENAI_CUSTOM_HEADERS": "X-Secret: head-secret\nAuthorization: Bearer sk-ambient",
    "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
}


@pytest.fixture
def environment(monkeypatch):
    for name, value in OF_OPENAI.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("key", [KEY, None])
def test_nothing_that_is_meant_for_openai_reaches_another_server(tmp_path, environment, key):
    with loopback() as server, judge(tmp_path, server.base_url, api_key=key) as lab:
        ask(lab, requests(1))
    (headers,) = server.headers
    assert headers["authorization"] == f"Bearer {key or 'none'}"
    assert not {"openai-organization", "openai-project", "x-secret"} & set(headers)
    assert not [value for value in headers.values() if "secret" in value or "sk-a" in value or "sk-o" in value]
    assert {name: os.environ[name] for name in OF_OPENAI} == OF_OPENAI  # others may still want it


def test_openai_gets_what_is_meant_for_it(environment):
    client = make_client("https://api.openai.com/v1", KEY, 5.0)
    assert (client.organization, client.project, client.api_key) == ("org-secret", "proj-secret", KEY)
    assert client.default_headers["X-Secret"] == "head-secret"


@pytest.mark.parametrize(
    ("base_url", "is_own"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("http://api.openai.com/v1", False),
        ("https://api.openai.com.example.org/v1", False),
        ("https://notopenai.com/v1", False),
        ("https://example.org/api.openai.com", False),
        ("http://localhost:8000/v1", False),
    ],
)
def test_an_address_of_openai_is_told_from_one_that_looks_like_it(base_url, is_own):
    assert is_openai(base_url) == is_own
