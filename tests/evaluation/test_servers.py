"""A judge that cannot be used is refused in one line before any call; its key comes from the environment."""

from dataclasses import replace
from pathlib import Path

import pytest

from judges import requests
from loopback import loopback
from sftmix.errors import InputError
from sftmix.evaluation import servers, session
from sftmix.evaluation.servers import check_judge, request_settings
from sftmix.evaluation.session import Session
from sftmix.evaluation.target import Target

LOCAL = ("judge=openai_compatible", "judge.model=lab/Judge-70B")

TARGET = Target("a model", "folder", None, "hash", Path("runs/model"), None, None)


def opened(config, folder):
    """The judge of a config, with its journal under a folder."""
    return Session(config, replace(TARGET, folder=folder)).judge("mt_bench")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["judge=none"], "judge=none: suite=mt_bench needs a judge, choose judge=gpt41, openai_compatible or fake"),
        (["judge=gpt4_paper"], "gpt-4-1106-preview are shut down, the last one since 2026-10-23; choose judge=gpt41"),
        (["judge=gpt41"], "judge gpt-4.1-2025-04-14: the environment variable OPENAI_API_KEY is not set"),
        ([*LOCAL, "judge.base_url=localhost:8000"], "judge.base_url=localhost:8000: not the address of a server"),
        ([*LOCAL, "judge.base_url=http://host:port/v1"], "judge.base_url=http://host:port/v1: not the address"),
        ([*LOCAL, "judge.model=null", "judge.name=x"], "judge.model has no value"),
    ],
)
def test_a_judge_that_cannot_be_used_is_refused(compose_eval, overrides, says):
    config = compose_eval("suite=mt_bench", *overrides)
    with pytest.raises(InputError) as raised:
        check_judge(config.judge, "mt_bench")
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "other"),
        ("messages", "[]"),
        ("temperature", "1"),
        ("max_tokens", "9"),
        ("logprobs", "false"),
        ("top_logprobs", "1"),
        ("n", "2"),
        ("stream", "true"),
    ],
)
def test_extra_body_cannot_replace_fields_of_the_request(compose_eval, name, value):
    config = compose_eval("suite=mt_bench", *LOCAL, f"judge.extra_body={{top_k: 1, {name}: {value}}}")
    with pytest.raises(InputError) as raised:
        check_judge(config.judge, "mt_bench")
    assert str(raised.value) == (
        f"judge.extra_body: {name} is set by the request, expected none of "
        "logprobs, max_tokens, messages, model, n, stream, temperature, top_logprobs"
    )


@pytest.mark.parametrize(
    "base_url",
    [
        "http://localhost:8000/v1?api-key=SECRET",
        "http://localhost:8000/v1#SECRET",
        "http://user:SECRET@localhost:8000/v1",
        "http://SECRET@localhost:8000/v1",
        "user:SECRET@localhost:8000",
        "localhost:8000?api-key=SECRET",
    ],
)
def test_an_address_that_holds_a_key_is_refused_and_not_printed(compose_eval, base_url):
    for key, group in (("judge", list(LOCAL)), ("generate", ["generate=openai", "generate.model=m"])):
        config = compose_eval("suite=mt_bench", *group, f"{key}.base_url='{base_url}'")
        with pytest.raises(InputError) as raised:
            if key == "judge":
                check_judge(config.judge, "mt_bench")
            else:
                Session(config, TARGET).check_answering()
        assert str(raised.value).startswith(f"{key}.base_url: holds a user, a password or a query")
        assert "keys are read from environment variables" in str(raised.value)
        assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["rename={max_token: x}"], "rename_parameters: max_token, expected one of temperature, max_tokens"),
        (["rename={model: x}"], "rename_parameters: model, expected one of"),
        (["rename={messages: x}"], "rename_parameters: messages, expected one of"),
        (
            ["rename={max_tokens: ''}"],
            "rename_parameters: max_tokens to '', expected a name such as max_completion_tokens",
        ),
        (["rename={max_tokens: 'a b'}"], "rename_parameters: max_tokens to 'a b'"),
        (
            ["rename={max_tokens: model}"],
            "rename_parameters: max_tokens to model, but the request already has this parameter",
        ),
        (["rename={max_tokens: temperature}"], "max_tokens to temperature, but the request already has this parameter"),
        (["rename={max_tokens: x, temperature: x}"], "temperature to x, but the request already has this parameter"),
        (["rename={max_tokens: n}"], "max_tokens to n, but the request already has this parameter"),
        (["drop=[model]"], "drop_parameters: model, expected one of temperature, max_tokens"),
        (["drop=[messages]"], "drop_parameters: messages, expected one of temperature, max_tokens"),
        (["drop=[top_k]"], "drop_parameters: top_k, expected one of"),
        (["drop=[temperature, temperature]"], "drop_parameters: temperature is named twice"),
        (["drop=[temperature]", "rename={temperature: t}"], "drop_parameters: temperature is named twice"),
    ],
)
def test_only_parameters_of_the_request_are_renamed_or_dropped(compose_eval, changes, says):
    for group, more in (("judge", list(LOCAL)), ("generate", ["generate=openai", "generate.model=m"])):
        given = [f"{group}.{change.replace('=', '_parameters=', 1)}" for change in changes]
        config = compose_eval("suite=mt_bench", *more, *given)
        with pytest.raises(InputError) as raised:
            if group == "judge":
                check_judge(config.judge, "mt_bench")
            else:
                Session(config, TARGET).check_answering()
        assert str(raised.value).startswith(f"{group}.")
        assert says in str(raised.value)


def test_parameters_of_what_sends_no_request_have_no_effect_and_are_refused(compose_eval):
    for change in ("max_tokens=9", "drop_parameters=[temperature]", "rename_parameters={max_tokens: x}"):
        with pytest.raises(InputError, match="it has no effect, judge=fake sends no request"):
            check_judge(compose_eval("suite=mt_bench", "judge=fake", f"judge.{change}").judge, "mt_bench")
    given = [*LOCAL, "judge.rename_parameters={max_tokens: top_k}", "judge.extra_body={top_k: 1}"]
    with pytest.raises(InputError, match="max_tokens to top_k, but the request already has this parameter"):
        check_judge(compose_eval("suite=mt_bench", *given).judge, "mt_bench")


def test_renamed_and_dropped_parameters_change_the_request_its_key_and_the_settings(compose_eval, tmp_path):
    asked = {"accepts": lambda _: None, "template_sha256": "", "title": "", "show_progress": False}
    given = ["rename_parameters={max_tokens: max_completion_tokens}", "drop_parameters=[temperature]", "max_tokens=512"]
    with loopback() as server:
        for number in range(len(given) + 1):
            changes = [f"judge.{change}" for change in given[:number]]
            config = compose_eval("suite=mt_bench", *LOCAL, f"judge.base_url={server.base_url}", *changes)
            check_judge(config.judge, "mt_bench")
            for _ in range(2):
                with opened(config, tmp_path) as judge:
                    judge.ask(requests(1), **asked)
            assert len(server.bodies) == number + 1
    plain, renamed, dropped, longer = ({k: v for k, v in body.items() if k != "messages"} for body in server.bodies)
    assert plain == {"model": "lab/Judge-70B", "temperature": 0.0, "max_tokens": 100}
    assert renamed == {"model": "lab/Judge-70B", "temperature": 0.0, "max_completion_tokens": 100}
    assert dropped == {"model": "lab/Judge-70B", "max_completion_tokens": 100}
    assert longer == {"model": "lab/Judge-70B", "max_completion_tokens": 512}
    assert request_settings(config.judge) == {
        "max_tokens": 512,
        "rename_parameters": {"max_tokens": "max_completion_tokens"},
        "drop_parameters": ["temperature"],
    }
    assert request_settings(compose_eval("suite=mt_bench", *LOCAL).judge) == {}


@pytest.mark.parametrize("overrides", [["judge=fake"], list(LOCAL), ["judge=gpt41", "dry_run=true"]])
def test_a_judge_that_can_be_used_is_accepted(compose_eval, overrides):
    config = compose_eval("suite=mt_bench", *overrides)
    check_judge(config.judge, "mt_bench", config.dry_run)


def test_a_judge_is_named_for_its_model_so_that_no_average_mixes_two(compose_eval):
    assert compose_eval("suite=mt_bench", *LOCAL).judge.name == "lab/Judge-70B"
    assert compose_eval("suite=mt_bench", "judge=gpt41", "judge.model=gpt-4o-2024-11-20").judge.name.startswith(
        "gpt-4o"
    )
    assert compose_eval("suite=mt_bench", *LOCAL, "judge.name=mine").judge.name == "mine"


@pytest.mark.parametrize("key", ["sk-\u00e9", "sk-a\nsk-b"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_printed(compose_eval, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError) as raised:
        check_judge(compose_eval("suite=mt_bench", "judge=gpt41").judge, "mt_bench")
    assert "sk-" not in str(raised.value)


def test_the_printed_override_sets_the_price(compose_eval, tmp_path):
    config = compose_eval("suite=mt_bench", *LOCAL)
    with opened(config, tmp_path) as judge:
        said = judge.estimate(requests(2), 500_000).in_words()
    override = said.partition("set ")[2].partition(" (US")[0].replace("'", "")  # as a shell hands it on
    for number in ("1.5", "2"):
        override = override.replace("DOLLARS", number, 1)
    config = compose_eval("suite=mt_bench", *LOCAL, override.replace("DAY", "2026-11-26"))
    with opened(config, tmp_path) as judge:
        assert judge.estimate(requests(2), 500_000).in_words().endswith("about $2.00 at the prices of 2026-11-26")


def test_the_settings_reach_the_server(compose_eval, monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_KEY", " sk-lab\n")
    with loopback() as server:
        config = compose_eval(
            "suite=mt_bench",
            *LOCAL,
            f"judge.base_url={server.base_url}",
            "judge.api_key_env=LAB_KEY",
            "judge.extra_body={chat_template_kwargs: {enable_thinking: false}}",
            "judge.price={prompt: 1, completion: 2, date: 2026-11-26}",
        )
        with opened(config, tmp_path) as judge:
            assert "prices of 2026-11-26" in judge.estimate(requests(2), 10).in_words()
            asked = {"accepts": lambda _: None, "template_sha256": "", "title": "", "show_progress": False}
            judge.ask(requests(1), **asked)
    assert server.keys == ["Bearer sk-lab"]
    assert server.bodies[0]["model"] == "lab/Judge-70B"
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert (tmp_path / "evaluation" / "mt_bench" / "judgments-lab_Judge-70B.jsonl").is_file()


def test_vllm_is_refused_where_it_cannot_run(compose_eval, monkeypatch):
    """The line says how to install it, before a model is read."""
    config = compose_eval("suite=mt_bench", "generate=vllm", "generate.template=chatml")
    with pytest.raises(InputError, match=r"vllm is not installed: pip install 'sftmix\[eval,vllm\]' in a separate"):
        Session(config, TARGET).check_answering()
    monkeypatch.setattr(servers, "find_spec", lambda _: True)
    monkeypatch.setattr(session, "why_torch_has_no_gpu", lambda: None)
    for number in (1, 4):
        config.generate.tensor_parallel_size = number
        monkeypatch.setattr(session, "count_gpus", lambda found=number - 1: found)
        with pytest.raises(InputError, match=f"tensor_parallel_size={number}: .* {number - 1} are visible"):
            Session(config, TARGET).check_answering()
    monkeypatch.setattr(session, "count_gpus", lambda: 4)
    Session(config, TARGET).check_answering()
