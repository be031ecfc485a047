"""Settings that no suite of the call reads are refused before anything is read."""

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.refusals import check_settings, suites_of


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["suite=medical", "judge=fake"], "judge=fake: suite medical asks no judge here"),
        (["suite=medical", "seed=5"], "seed=5: suite medical does not read it here"),
        (["suite=medical", "generate.template=chatml"], "generate.template=chatml: suite medical does not read it"),
        (["suite=medical", "generate=openai", "generate.model=m"], "generate=openai: suite medical does not read it"),
        (["suite=offline", "allow_partial=true"], "allow_partial=true: suite offline does not read it"),
        (["suite=offline", "bench=demo"], "bench=demo: suite offline does not read it"),
        (["suite=mt_bench", "suite.as_fastchat=x", "seed=3"], "seed=3: suite mt_bench does not read it"),
        (["suite=mt_bench", "suite.as_fastchat=x", "judge=fake"], "judge=fake: suite mt_bench asks no judge here"),
        (["suite=mt_bench", "suite.as_fastchat=x", "limit=3"], "limit=3: suite.as_fastchat is scored as it is"),
        (["suite=mt_bench", "suite.as_fastchat=x", "suite.rounds=5"], "suite.rounds=5: it has no effect, suite.as_fas"),
        (["suite=mt_bench", "suite.as_fastchat=x", "suite.rounds_of=judge"], "suite.rounds_of=judge: it has no effect"),
        (["suite=mt_bench", "suite.as_fastchat=x", "suite.max_new_tokens=9"], "suite.max_new_tokens=9: it has no eff"),
        (["suite=mt_bench", "suite.as_fastchat=x", "run=r"], "run=r: suite mt_bench does not read it here"),
        (["suite=mt_bench", "suite.as_fastchat=x", "generate.template=chatml"], "generate.template=chatml: suite mt_"),
        (["suite=alpaca_eval", "suite.annotations=x", "suite.rounds=1"], "suite.rounds=1: it has no effect, suite.ann"),
        (["suite=alpaca_eval", "suite.annotations=x", "suite.scoring=vote"], "suite.scoring=vote: it has no effect"),
        (
            ["suite=alpaca_eval", "judge=fake", "suite.votes=9"],
            "suite.votes=9: it has no effect, suite.scoring=logprob",
        ),
        (["suite=all", "judge=fake", "suite.alpaca_eval.votes=9"], "suite.alpaca_eval.votes=9: it has no effect"),
        (
            ["suite=alpaca_eval", "judge=fake", "suite.outputs=x", "suite.temperature=0"],
            "suite.temperature=0: it has no effect, the answers in suite.outputs exist already",
        ),
        (["suite=alpaca_eval", "judge=fake", "suite.outputs=x", "suite.rounds=2"], "suite.rounds=2: it has no effect"),
        (
            ["suite=all", "judge=fake", "suite.alpaca_eval.outputs=o.json"],
            "suite.alpaca_eval.outputs=o.json: suite all evaluates one model, set suite.outputs with suite=alpaca_eval",
        ),
        (
            ["suite=mt_bench", "judge=fake", "generate=openai", "generate.model=m", "devices=2"],
            "devices=2: suite mt_bench does not run the model on this machine",
        ),
        (
            ["suite=human", "a=x", "b=y", "generate=openai", "generate.model=m", "devices=2"],
            "devices=2: suite human does not run the model on this machine",
        ),
        (
            ["suite=mt_bench", "judge=fake", "generate.drop_parameters=[seed]"],
            "generate.drop_parameters=[seed]: generate=hf does not read it, only generate=openai does",
        ),
        (
            ["suite=mt_bench", "judge=fake", "generate=vllm", "generate.batch_size=4"],
            "generate.batch_size=4: generate=vllm does not read it, only generate=hf does",
        ),
        (
            ["suite=mt_bench", "judge=fake", "generate.tensor_parallel_size=4"],
            "generate.tensor_parallel_size=4: generate=hf does not read it, only generate=vllm does",
        ),
        (
            ["suite=mt_bench", "judge=fake", "generate=vllm", "devices=2"],
            "devices=2: vLLM takes as many GPUs as generate.tensor_parallel_size says",
        ),
        (
            ["suite=offline", "generate=vllm"],
            "generate=vllm: suite offline computes with the model in this process too, and two copies do not share a",
        ),
        (["suite=all", "judge=fake", "generate=vllm"], "generate=vllm: suite medical computes with the model in this"),
        (
            ["suite=mt_bench", "judge=fake", "generate.backend=openai"],
            "generate.backend=openai: expected generate=NAME, which sets the backend with its other settings",
        ),
        (["suite=mt_bench", "judge=fake", "judge.backend=openai"], "judge.backend=openai: expected judge=NAME, which"),
        (["suite=human", "suite.judgments=[x.json]", "devices=2"], "devices=2: suite human does not "),
        (["suite=alpaca_eval", "suite.annotations=x", "device=cpu"], "device=cpu: suite alpaca_eval does not "),
        (["suite=alpaca_eval", "judge=fake", "suite.outputs=x", "devices=1"], "devices=1: suite alpaca_eval does not "),
        (["suite=human", "run=x", "a=x", "b=y"], "run=x: suite=human does not read it, its two models are a= and b="),
        (["suite=human", "a=x"], "b has no value, suite=human compares two: a=runs/ONE b=runs/OTHER"),
        (["suite=medical", "a=x"], "a=x: only suite=human reads it"),
        (["suite=medical", "revision=x"], "revision=x: expected run=OWNER/NAME, the hub id that it belongs to"),
        (["suite=medical", "bench=nowhere"], "bench=nowhere: no such folder"),
    ],
)
def test_a_setting_without_effect_is_refused(compose_eval, overrides, says):
    config = compose_eval(*overrides)
    with pytest.raises(InputError) as error:
        check_settings(config, suites_of(config.suite), overrides)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    "overrides",
    [
        ["suite=all", "judge=fake", "limit=5", "seed=1", "device=cpu", "generate.batch_size=4"],
        ["suite=medical", "bench=demo", "limit=3"],
        ["suite=human", "a=x", "b=y", "seed=2", "devices=2"],
        ["suite=all", "judge=fake", "generate=openai", "generate.model=m", "devices=2"],
        ["suite=offline", "generate=openai", "generate.model=m", "devices=2"],
        ["suite=mt_bench", "judge=fake", "generate=vllm", "generate.max_model_len=4096", "generate.dtype=bfloat16"],
        ["suite=human", "suite.judgments=[x.json]"],
        ["suite=alpaca_eval", "suite.annotations=a.json", "suite.outputs=o.json", "bench=demo"],
        ["suite=alpaca_eval", "suite.outputs=o.json", "judge=fake"],
        ["suite=alpaca_eval", "suite.outputs=o.json", "judge=fake", "suite.rounds=1", "suite.scoring=single"],
        ["suite=alpaca_eval", "judge=fake", "suite.scoring=vote", "suite.votes=9"],
        ["suite=all", "judge=fake", "suite.mt_bench.rounds=2", "suite.alpaca_eval.rounds=2"],
    ],
)
def test_a_setting_with_an_effect_is_accepted(compose_eval, overrides):
    config = compose_eval(*overrides)
    check_settings(config, suites_of(config.suite), overrides)
