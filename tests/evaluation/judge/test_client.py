"""A server gets only what is meant for it, and nothing that the environment has for another server."""

import os

import pytest

from judges import KEY, ask, judge, requests
from loopback import loopback
from sftmix.evaluation.judge.client import is_loopback, is_openai, make_client

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
    assert {name: os.environ[name] for name in OF_OPENAI} == OF_OPENAI  # others may still read it


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
def test_an_address_of_openai_is_distinguished_from_similar_ones(base_url, is_own):
    assert is_openai(base_url) == is_own


@pytest.fixture
def proxies(monkeypatch):
    """Every proxy of the environment at an address."""

    def set_all(address):
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, address)

    return set_all


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_not_asked_by_a_proxy(tmp_path, proxies, host):
    with loopback() as proxy, loopback() as server:
        proxies(proxy.base_url.removesuffix("/v1"))
        with judge(tmp_path, server.base_url.replace("127.0.0.1", host)) as lab:
            ask(lab, requests(2))
    assert (len(server.bodies), len(proxy.bodies)) == (2, 0)


def test_a_server_elsewhere_is_asked_by_the_proxy_of_the_environment(tmp_path, proxies):
    with loopback() as proxy:
        proxies(proxy.base_url.removesuffix("/v1"))
        with judge(tmp_path, "http://judge.invalid/v1") as lab:
            ask(lab, requests(2))
    assert [headers["host"] for headers in proxy.headers] == ["judge.invalid"] * 2


@pytest.mark.parametrize(
    ("base_url", "is_own"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.1.2.3/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://LOCALHOST/v1", True),
        ("http://192.168.0.1/v1", False),
        ("http://localhost.example.org/v1", False),
        ("https://api.openai.com/v1", False),
    ],
)
def test_an_address_of_this_machine_is_recognized(base_url, is_own):
    assert is_loopback(base_url) == is_own
