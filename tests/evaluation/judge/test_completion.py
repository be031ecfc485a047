"""A reply is checked before it is kept: the error names what cannot be read, and no secret is kept."""

import base64
import html
import json
from urllib.parse import quote

import pytest

from judges import KEY, ask, judge, lines, requests
from loopback import Fault, loopback
from sftmix.errors import InputError
from sftmix.evaluation.judge.client import Server
from sftmix.evaluation.judge.completion import read_completion
from sftmix.evaluation.judge.error_replies import Unanswered

SERVER = Server("judge x", "m", None, None, concurrency=1, max_retries=0, timeout=1.0)


def body_with(path, value):
    """A good completion in which one field has another value."""
    body = {
        "model": "m-1",
        "system_fingerprint": "fp",
        "choices": [
            {
                "message": {"role": "assistant", "content": "[[5]]"},
                "finish_reason": "stop",
                "logprobs": {"content": [{"token": "m", "top_logprobs": [{"token": "m", "logprob": -0.1}]}]},
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    }
    *parents, last = path
    place = body
    for name in parents:
        place = place[name]
    place[last] = value
    return body


CHOICE = ("choices", 0)
LOGPROBS = (*CHOICE, "logprobs")
ALTERNATIVE = (*LOGPROBS, "content", 0, "top_logprobs", 0)


def read(path=(), value=None, top_logprobs=1, server=SERVER):
    content = value if not path else json.dumps(body_with(path, value)).encode()
    return read_completion(content, server, requests(1, top_logprobs=top_logprobs)[0])


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ((*CHOICE, "message", "content"), 5, "message.content is 5, expected a text, null or a list of text parts"),
        ((*CHOICE, "message", "content"), 10.0, "message.content is 10.0"),
        ((*CHOICE, "message", "content"), True, "message.content is true"),
        ((*CHOICE, "message", "content"), {"text": "[[5]]"}, "message.content is {"),
        ((*CHOICE, "message", "content"), ["[[5]]"], 'a part of message.content is "[[5]]"'),
        ((*CHOICE, "message", "content"), [{"type": "text", "text": 5}], "a part of message.content is {"),
        ((*CHOICE, "message", "content"), [{"type": "image_url"}], "a part of message.content is {"),
        ((*CHOICE, "message", "content"), [None], "a part of message.content is nothing"),
        ((*CHOICE, "message", "refusal"), ["no"], "message.refusal is"),
        ((*CHOICE, "message"), "text", 'message is "text", expected an object'),
        ((*CHOICE, "message"), None, "message is nothing"),
        ((*CHOICE, "finish_reason"), 1, "finish_reason is 1, expected a text"),
        ((*CHOICE, "finish_reason"), ["stop"], "finish_reason is"),
        (("choices",), [], "choices is [], expected a list with an object"),
        (("choices",), None, "choices is nothing"),
        (("choices",), {"0": {}}, "choices is {"),
        (("choices",), [[]], "choices is [[]]"),
        (("model",), 5, "model is 5"),
        (("model",), {"id": "m"}, "model is {"),
        (LOGPROBS, 5, "logprobs is 5"),
        (LOGPROBS, [1], "a token of logprobs is [1]"),
        ((*LOGPROBS, "content"), {"m": -0.1}, "logprobs is {"),
        ((*LOGPROBS, "content", 0, "token"), None, "a token of logprobs is"),
        ((*LOGPROBS, "content", 0, "top_logprobs"), {"m": -0.1}, "top_logprobs is {"),
        (ALTERNATIVE, "m", 'an alternative of top_logprobs is "m"'),
        ((*ALTERNATIVE, "token"), 5, "an alternative of top_logprobs is"),
    ],
)
def test_a_field_of_another_type_is_named(path, value, says):
    with pytest.raises(Unanswered) as raised:
        read(path, value)
    assert raised.value.cause.startswith(f"a reply that cannot be read: {says}")
    assert raised.value.is_paid
    assert len(raised.value.cause) < 200


@pytest.mark.parametrize("value", [0.7, 1, 1e300, 10**400, "-0.1", None, True, float("nan"), float("inf"), [-0.1]])
def test_a_log_probability_that_is_none_is_a_fault_of_the_server(value):
    with pytest.raises(Unanswered, match=r"log-probability of token 'm' is .*, expected .* 0: .* fault of the server"):
        read((*ALTERNATIVE, "logprob"), value)


def test_probabilities_that_add_up_to_more_than_1_are_a_fault_of_the_server():
    tokens = [{"token": "m", "logprob": -0.1}, {"token": "M", "logprob": -0.1}]
    with pytest.raises(Unanswered, match=r"add up to 1\.81, expected at most 1: this is a fault of the server"):
        read((*LOGPROBS, "content", 0, "top_logprobs"), tokens)


@pytest.mark.parametrize(
    ("logprob", "kept"), [(0, {"m": 0.0}), (1e-6, {"m": 0.0}), (-9999.0, {"m": -9999.0}), (float("-inf"), None)]
)
def test_log_probabilities_at_the_bounds_are_kept(logprob, kept):
    assert read((*ALTERNATIVE, "logprob"), logprob).top_logprobs == kept


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<html><body>busy</body></html>", "not JSON, expected a chat completion (begins: '<html><body>busy"),
        (b"", "not JSON"),
        (b'{"choices": [', "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"model": "\xed\xa0\x80"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"id": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b"[]", "the reply is [], expected an object"),
        (b'"text"', 'the reply is "text"'),
        (b"NaN", "the reply is NaN"),
    ],
)
def test_a_body_that_is_not_a_completion_is_named(content, says):
    with pytest.raises(Unanswered, match="reply") as raised:
        read(value=content)
    assert says in raised.value.cause


def test_a_text_beyond_any_context_is_refused():
    assert len(read((*CHOICE, "message", "content"), "x" * 2**21).text) == 2**21
    with pytest.raises(Unanswered, match=r"a reply of 2,097,153 characters, expected at most 2,097,152"):
        read((*CHOICE, "message", "content"), "x" * (2**21 + 1))


def test_text_parts_are_joined_and_thinking_parts_are_not_part_of_the_text():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "[[10]]"}]},
        {"type": "text", "text": "Rating: "},
        {"type": "text", "text": "[[7]]"},
    ]
    reply = read((*CHOICE, "message", "content"), parts)
    assert (reply.text, reply.has_reasoning) == ("Rating: [[7]]", True)
    assert read((*CHOICE, "message", "content"), None).text == ""


@pytest.mark.parametrize(
    "usage",
    [
        None, 5, "many", [], {}, {"prompt_tokens": 5}, {"prompt_tokens": "5", "completion_tokens": "2"},
        {"prompt_tokens": -5, "completion_tokens": 2}, {"prompt_tokens": 5, "completion_tokens": True},
        {"prompt_tokens": 5, "completion_tokens": 2.5}, {"prompt_tokens": 5, "completion_tokens": float("nan")},
        {"prompt_tokens": 5, "completion_tokens": 10**30},
    ],
)  # fmt: skip
def test_usage_of_another_type_is_unknown_and_the_reply_counts(usage):
    assert read(("usage",), usage).record["usage"] is None


def test_characters_that_no_file_holds_and_names_of_several_lines_are_replaced():
    assert read((*CHOICE, "message", "content"), "a\ud800b\0c \U0001f600").text == "a\ufffdb\ufffdc \U0001f600"
    reply = read(("model",), "m\n\x1b[31m" + "x" * 1000)
    assert reply.served_model.startswith("m  [31mx")
    assert len(reply.served_model) == 300
    assert read(("system_fingerprint",), 5).record["system_fingerprint"] is None


def test_a_reply_of_each_kind_is_asked_again_by_the_same_command_and_never_kept(tmp_path, no_waiting):
    odd = [5, ["[[1]]"], {"a": 1}, True]

    def fault(place, _):
        if place >= len(odd):
            return None
        return Fault(edit=lambda reply: reply["choices"][0]["message"].update(content=odd[place]))

    with (
        loopback(fault) as server,
        judge(tmp_path, server.base_url, max_retries=0) as lab,
        pytest.raises(InputError, match=r"4 of 4 calls failed .*message.content is"),
    ):
        ask(lab, requests(4))
    assert lines(tmp_path) == []
    with loopback() as server, judge(tmp_path, server.base_url) as lab:
        assert None not in ask(lab, requests(4))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"text": ["[[5]]"]}, "text is not a text"),
        ({"text": 5}, "text is not a text"),
        ({"finish": None}, "finish is not a text"),
        ({"served_model": 1}, "served_model is not a text"),
        ({"date": "yesterday"}, "date is not a date"),
        ({"top_logprobs": {"m": 0.7}}, "top_logprobs are not log-probabilities by token"),
        ({"top_logprobs": {"m": float("nan")}}, "top_logprobs are not log-probabilities by token"),
        ({"top_logprobs": [["m", -1]]}, "top_logprobs are not log-probabilities by token"),
    ],
)
def test_a_poisoned_line_of_a_journal_is_named_and_its_call_is_made_again(tmp_path, capsys, changes, cause):
    with loopback() as server:
        with judge(tmp_path, server.base_url) as lab:
            first = ask(lab, requests(3))
        kept = lines(tmp_path)
        poisoned = json.dumps(json.loads(kept[0]) | changes)
        (tmp_path / "judgments-lab.jsonl").write_text("\n".join([poisoned, *kept[1:]]) + "\n")
        for _ in range(2):
            with judge(tmp_path, server.base_url) as lab:
                assert [reply.text for reply in ask(lab, requests(3))] == [reply.text for reply in first]
            assert len(server.bodies) == 4
    assert capsys.readouterr().err.count(f"line 1 is not a record and skipped ({cause});") == 1


HOSTILE_KEY = "sk-a+b/c=d&e\"f\\g<h>'i-0123456789"


def forms(key):
    """Texts that hold a key in one of the forms in which a server may repeat it."""
    yield from (key, f"Bearer {key}", key.upper(), quote(key), quote(key, safe=""), quote(quote(key, safe="")))
    yield "".join(f"%{ord(char):02X}" for char in key)
    yield "".join(f"\\u{ord(char):04x}" for char in key)
    yield from (json.dumps(key), json.dumps(json.dumps(key)[1:-1]).replace("\\\\", "\\"), key.replace("/", "\\/"))
    yield from (html.escape(key), "".join(f"&#{ord(char)};" for char in key))
    for before in ("", "u", "us", "user:", "Bearer "):
        yield base64.b64encode(f"{before}{key}".encode()).decode()
        yield base64.urlsafe_b64encode(f"{before}{key} and more".encode()).decode().rstrip("=")


def holds(text, key):
    """Whether a text gives the key to a reader who decodes it."""
    plain = text.lower()
    return any(form.lower() in plain or form.lower().rstrip("=")[4:-4] in plain for form in forms(key))


@pytest.mark.parametrize("key", [KEY, HOSTILE_KEY, "0123456789abcdef0123456789abcdef"])
def test_a_key_is_removed_in_every_form(key):
    server = Server("judge x", "m", None, key, concurrency=1, max_retries=0, timeout=1.0)
    for form in forms(key):
        scrubbed = server.scrubber.text(f"before {form} after")
        assert "(the key)" in scrubbed, form
        assert not holds(scrubbed, key), form
        assert scrubbed.startswith("before "), form


@pytest.mark.parametrize(
    "key", ["x", "m", "EMPTY", "none", "1", "10", "8000", "sk-no-key-required", "not-needed", "password", "answer"]
)
def test_a_short_key_and_a_placeholder_do_not_damage_ordinary_texts(key):
    server = Server("judge x", "m", None, key, concurrency=1, max_retries=0, timeout=1.0)
    text = "The answer 10 is EMPTY of examples, max 8000; none is more. Not-needed password. Rating: [[10]]"
    assert server.scrubber.text(text) == text
    assert server.scrubber.tokens({"m": -1.0, "M": -2.0, "10": -3.0}) == {"m": -1.0, "M": -2.0, "10": -3.0}


def test_a_short_key_of_letters_and_digits_is_removed_as_a_word():
    server = Server("judge x", "m", None, "hunter2", concurrency=1, max_retries=0, timeout=1.0)
    assert server.scrubber.text("key hunter2, hunter22") == "key (the key), hunter22"


def test_secrets_of_an_address_are_removed():
    url = "http://us%65r:pass-word-1@host/v1?api-key=query-secret-2"
    server = Server("judge x", "m", url, None, concurrency=1, max_retries=0, timeout=1.0)
    basic = base64.b64encode(b"user:pass-word-1").decode()
    scrubbed = server.scrubber.text(f"pass-word-1, query-secret-2 and Basic {basic}")
    assert scrubbed.count("(the key)") == 3
    assert "pass-word-1" not in repr(server)


def test_a_key_that_is_split_over_tokens_is_not_kept():
    server = Server("judge x", "m", None, KEY, concurrency=1, max_retries=0, timeout=1.0)
    pieces = [KEY[start : start + 3] for start in range(0, len(KEY), 3)]
    tokens = [{"token": token, "logprob": -5.0} for token in ["m", *pieces]]
    kept = read((*LOGPROBS, "content", 0, "top_logprobs"), tokens, server=server).top_logprobs
    assert set(kept) == {"m", "(the key)", KEY[-1]}
    assert server.scrubber.tokens({"m": -1.0, "never-to": -2.0}) == {"m": -1.0, "(the key)": -2.0}


def test_no_field_of_a_reply_that_repeats_the_key_reaches_a_journal_or_a_message(tmp_path, capfd, no_waiting):
    def echo(reply):
        reply["id"] = reply["model"] = reply["system_fingerprint"] = f"served for {KEY}"
        choice = reply["choices"][0]
        choice["message"]["content"] = f"Authorization: Bearer {KEY}, {quote(KEY.encode().hex())}. Rating: [[4]]"
        choice["logprobs"]["content"][0]["top_logprobs"] += [{"token": KEY, "logprob": -99.0}]

    def fault(place, _):
        headers = {"X-Request-Id": KEY, "Set-Cookie": f"key={KEY}"}
        bad = Fault(edit=lambda reply: reply.update(choices=KEY), headers=headers)
        return {0: bad, 1: Fault(changes={"finish": KEY}), 2: Fault.status(500, f"key={KEY}")}.get(
            place, Fault(edit=echo, headers=headers)
        )

    with loopback(fault) as server, judge(tmp_path, server.base_url, concurrency=1) as lab:
        replies = ask(lab, requests(3, top_logprobs=5))
    assert all(reply.text.startswith("Authorization: Bearer (the key), ") for reply in replies)
    assert replies[0].served_model == "served for (the key)"
    written = "".join(lines(tmp_path)) + "".join(capfd.readouterr())
    assert KEY not in written
