"""Answers without the reasoning before them, and the verdict's token among the tokens of a reply."""

import json

import pytest

from judges import requests
from sftmix.evaluation.judge.client import Server
from sftmix.evaluation.judge.completion import read_completion
from sftmix.evaluation.judge.reasoning import answer_of, verdict_of

SERVER = Server("judge x", "m", None, None, concurrency=1, max_retries=0, timeout=1.0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>Hm</think>\n\nFour.", "Four."),
        ("<think>\n\n</think>\n\nFour.", "Four."),
        ("Hm, 2 + 2.\n</think>\n\nFour.", "Four."),
        (
            "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Four.<|return|>",
            "Four.",
        ),
        ("[THINK]Hm[/THINK]Four.", "Four."),
        ("<think>Hm", ""),
        ("<think>Hm</think>", ""),
        ("<think>a</think>R1 writes <think> and </think>.", "R1 writes <think> and </think>."),
        ("Four.", "Four."),
        ("", ""),
        ("R1 writes `<think>` and `</think>` around it.", "R1 writes `<think>` and `</think>` around it."),
        ("Its form:\n<think>\n...\n</think>\nanswer", "Its form:\n<think>\n...\n</think>\nanswer"),
        ("An analysis of it: fine.", "An analysis of it: fine."),
    ],
)
def test_only_reasoning_before_an_answer_is_removed(text, answer):
    assert answer_of(text) == answer


class Counted(str):
    """A text that counts the characters that are read from it outside of patterns."""

    num_read = 0

    def __getitem__(self, key):
        part = super().__getitem__(key)
        self.num_read += len(part)
        return part

    def rfind(self, part, start=0, end=None):
        end = len(self) if end is None else end
        self.num_read += max(0, end - start)
        return super().rfind(part, start, end)


@pytest.mark.parametrize(
    "part", ["<think>", "</think>", "\u25c1think\u25b7 ", "<|channel|>final ", "\n<think>x", " <think>\n"]
)
def test_many_marks_in_a_reply_do_not_read_it_many_times(part):
    text = Counted("x" + part * 1000)
    verdict_of(text)
    answer_of(text)
    assert text.num_read < 10 * len(text)


def top_logprobs(tokens, content, **message):
    """What is read of a reply whose tokens have log-probabilities; the alternatives name the place of their token."""
    scored = [
        {"token": token, "logprob": -0.1, "top_logprobs": [{"token": f"{place}", "logprob": -0.1}]}
        for place, token in enumerate(tokens)
    ]
    choice = {
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": "stop",
        "logprobs": {"content": scored},
    }
    found = read_completion(
        json.dumps({"model": "m", "choices": [choice]}).encode(), SERVER, requests(1, top_logprobs=5)[0]
    )
    return found.top_logprobs and int(next(iter(found.top_logprobs)))


@pytest.mark.parametrize(
    ("tokens", "content", "place"),
    [
        (["m"], "m", 0),
        (["m", " because"], "m because", 0),
        (["m", "<|im_end|>"], "m", 0),
        (["<think>", "M", "</think>", "\n\n", "m"], "<think>M</think>\n\nm", 4),
        (["M", "</think>", "m"], "M</think>m", 2),
        (["<think>", "M", "</think>", "\n\n", "m", "<|im_end|>"], "m", 4),  # the server has separated the reasoning
        (["<", "th", "ink", ">", "M", "</", "think", ">\n", "\n", "m"], "<think>M</think>\n\nm", 9),
        (["Hm", ",", " M", " m"], "m", 3),  # without the special tokens that end the reasoning
        (["<|channel|>", "analysis", "<|message|>", "M", "<|end|>", "<|start|>", "assistant", "<|channel|>", "final",
          "<|message|>", "m"], "m", 10),
        (["<think>", "M", "m"], "<think>Mm", None),
        (["<think>", "M", "</think>", "\n"], "<think>M</think>\n", None),
        ([], "m", None),
    ],
)  # fmt: skip
def test_the_token_of_the_verdict_follows_the_reasoning(tokens, content, place):
    assert top_logprobs(tokens, content) == place
