"""Requests to the hub before heavy imports: errors are one line, and a cached copy needs no request."""

import huggingface_hub
import pytest
from huggingface_hub import constants

from sftmix.errors import InputError
from sftmix.hub import check_on_hub, looks_local


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Return the requests to a hub that cannot be reached, with an empty cache."""
    questions = []

    def repo_info(self, hub_id, **options):
        questions.append((hub_id, options["revision"], options["repo_type"]))
        raise ConnectionError("Name or service not known\nsecond line")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return questions


def test_an_unreachable_hub_is_one_line_with_the_remedy(asked):
    says = r"model a/b: could not be read from the hub \(Name or .*hf auth login.*accept the license.*model\.path=x"
    with pytest.raises(InputError, match=says) as error:
        check_on_hub("model", "a/b", "0123", "model.path=x")
    assert "\n" not in str(error.value)
    assert asked == [("a/b", "0123", "model")]


def test_a_cached_copy_needs_no_network(asked, tmp_path):
    (tmp_path / "datasets--a--b").mkdir()
    check_on_hub("dataset", "a/b", None, "")
    assert asked == []


def test_offline_nothing_is_asked(asked, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_on_hub("model", "a/b", None, "")
    assert asked == []


def test_hub_ids_and_folders_are_distinguished(tmp_path):
    assert not looks_local("mistralai/Mistral-7B-v0.1")
    assert all(looks_local(p) for p in ("./a/b", "/a/b", "~/a", str(tmp_path), "folder", "a/b/c"))
