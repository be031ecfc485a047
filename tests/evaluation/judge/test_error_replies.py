"""Error replies, redirects and oversized replies: each ends in one line with its cause and remedy."""

import gzip
import json
import zlib

import pytest

from judges import KEY, ask, judge, lines, requests
from loopback import Fault, loopback
from sftmix.errors import InputError
from sftmix.evaluation.generators.server import shorter
from sftmix.evaluation.judge import client, error_replies
from sftmix.evaluation.judge.client import Server
from sftmix.evaluation.judge.error_replies import TooLong, Unanswered, refusal

SERVER = Server("judge x", "m", None, None, concurrency=1, max_retries=0, timeout=1.0)
(REQUEST,) = requests(1)


def of_question(number, fault):
    """A script that gives each call of one question a fault."""
    return lambda _, body: fault if body["messages"][0]["content"].endswith(f" {number}.") else None


def edited(**message):
    finish = message.pop("finish", "stop")

    def edit(reply):
        reply["choices"][0]["finish_reason"] = finish
        reply["choices"][0]["message"].update(message)

    return Fault(edit=edit)


AZURE = Fault(
    code=400,
    body=json.dumps(
        {
            "error": {
                "message": "The response was filtered due to the prompt triggering the content management policy.",
                "code": "content_filter",
                "status": 400,
                "innererror": {"code": "ResponsibleAIPolicyViolation"},
            }
        }
    ).encode(),
)
ALIBABA = Fault.status(400, "Input data may contain inappropriate content.", "data_inspection_failed")
OPENAI = Fault.status(
    400, "Invalid prompt: your prompt was flagged as potentially violating our policy.", "invalid_prompt"
)
DALLE = Fault.status(400, "Your request was rejected as a result of our safety system.")
DEEPSEEK = Fault.status(400, "Content Exists Risk", "invalid_request_error")
LITELLM = Fault.status(400, "litellm.ContentPolicyViolationError: The response was filtered", "400")
OPENROUTER = Fault(
    code=403,
    body=json.dumps(
        {
            "error": {
                "code": 403,
                "message": 'The model requires moderation. Your input was flagged for "violence".',
                "metadata": {"reasons": ["violence"], "flagged_input": "Rate answer"},
            }
        }
    ).encode(),
)
IN_REPLY = Fault(body=json.dumps({"error": {"message": "flagged", "code": "content_filter"}}).encode())


@pytest.mark.parametrize(
    ("fault", "says", "num_tries"),
    [
        (edited(content=None, refusal="I can't help with that."), "the judge refused to answer: \"I can't help", 3),
        (edited(content="", refusal="No."), "the judge refused to answer: 'No.'", 3),
        (edited(finish="content_filter"), "the server's content filter cut the reply", 3),
        (edited(content=None, finish="content_filter"), "the server's content filter cut the reply", 3),
        (AZURE, "the server's content filter refused the prompt (status 400: The response was filtered", 1),
        (ALIBABA, "the server's content filter refused the prompt (status 400: Input data", 1),
        (OPENAI, "the server's content filter refused the prompt (status 400: Invalid prompt", 1),
        (DALLE, "the server's content filter refused the prompt (status 400: Your request", 1),
        (DEEPSEEK, "the server's content filter refused the prompt (status 400: Content Exists", 1),
        (LITELLM, "the server's content filter refused the prompt (status 400: litellm", 1),
        (OPENROUTER, "the server's content filter refused the prompt (status 403: The model requires", 1),
        (edited(content=None, finish="content_filter: SAFETY"), "the server's content filter cut the reply", 3),
        (IN_REPLY, "the server's content filter refused the prompt (status 400: flagged)", 1),
        (
            edited(content="", reasoning_content="Hm, [[10]]?", finish="length"),
            "a reply of reasoning only, cut at max_tokens=100 before a verdict: raise judge.max_tokens",
            1,
        ),
        (edited(content=None, reasoning="Hm", finish="length"), "a reply of reasoning only, cut at max_tokens=100", 1),
        (edited(content="<think>Hm, [[10]]?", finish="length"), "a reply of reasoning only, cut at max_tokens=100", 1),
        (edited(content="<think>Hm</think>\n\n"), "a reply of reasoning only, which ended without a verdict", 1),
        (edited(content="", reasoning="Hm"), "a reply of reasoning only, which ended without a verdict", 1),
        (edited(content="", finish="length"), "an empty reply, cut at max_tokens=100 before a verdict: raise", 3),
        (edited(content=""), "an empty reply", 3),
        (edited(finish="tool_calls"), "a reply that ended by tool_calls", 3),
        (edited(finish=None), "a reply that ended by no finish_reason", 3),
    ],
)
def test_each_kind_of_no_verdict_is_named_and_does_not_end_the_other_calls(
    tmp_path, no_waiting, fault, says, num_tries
):
    with loopback(of_question(2, fault)) as server, judge(tmp_path, server.base_url, concurrency=1) as lab:
        with pytest.raises(InputError) as raised:
            ask(lab, requests(5))
        assert str(raised.value).startswith(f"judge lab: 1 of 5 calls failed (question 2, turn 1: {says}")
        assert str(raised.value).endswith(
            "; run the same command again to repeat only these, or allow_partial=true scores the others"
        )
        assert len(server.bodies) == 4 + num_tries
        assert [reply is None for reply in ask(lab, requests(5), allow_partial=True)] == [False] * 2 + [True] + [
            False
        ] * 2
    assert len(lines(tmp_path)) == 4


def test_usage_that_counts_reasoning_tokens_only_is_reasoning_only(tmp_path, no_waiting):
    def edit(reply):
        reply["choices"][0] |= {"finish_reason": "length", "message": {"role": "assistant", "content": ""}}
        reply["usage"]["completion_tokens_details"] = {"reasoning_tokens": 100}

    with (
        loopback(lambda *_: Fault(edit=edit)) as server,
        judge(tmp_path, server.base_url) as lab,
        pytest.raises(InputError, match="a reply of reasoning only, cut at max_tokens=100 before a verdict"),
    ):
        ask(lab, requests(1))


def test_many_filtered_prompts_do_not_look_like_a_server_that_is_down(tmp_path):
    with loopback(lambda place, _: AZURE if place < 30 else None) as server:
        with judge(tmp_path, server.base_url, concurrency=1) as lab:
            replies = ask(lab, requests(40), allow_partial=True)
        assert len(server.bodies) == 40
    assert sum(reply is None for reply in replies) == 30


def test_causes_of_failed_calls_are_counted_by_kind(tmp_path, no_waiting):
    def fault(_, body):
        number = int(body["messages"][0]["content"].rstrip(".").rpartition(" ")[2])
        return {1: AZURE, 2: AZURE, 3: edited(content=None, refusal="No.")}.get(number)

    with loopback(fault) as server, judge(tmp_path, server.base_url) as lab, pytest.raises(InputError) as raised:
        ask(lab, requests(5))
    assert "3 of 5 calls failed (2 as question 1, turn 1: the server's content filter refused" in str(raised.value)
    assert "; 1 as question 3, turn 1: the judge refused to answer: 'No.'); run" in str(raised.value)


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model.",
            "judge.rename_parameters='{max_tokens: max_completion_tokens}'",
        ),
        (
            "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) is supported",
            "judge.drop_parameters='[temperature]'",
        ),
        ("logprobs are not supported with this model", "suite.scoring=vote needs no log-probabilities"),
    ],
)
def test_a_parameter_that_the_server_refuses_ends_all_with_its_remedy(tmp_path, message, remedy):
    with loopback(lambda *_: Fault.status(400, message)) as server, judge(tmp_path, server.base_url) as lab:
        for allow_partial in (False, True):
            with pytest.raises(InputError) as raised:
                ask(lab, requests(1), allow_partial=allow_partial)
            assert remedy in str(raised.value)


def test_a_request_that_is_called_wrong_names_allow_partial(tmp_path):
    for message in ("no", "maximum context length is 9 tokens"):
        with loopback(lambda *_, said=message: Fault.status(400, said)) as server:
            with judge(tmp_path, server.base_url) as lab, pytest.raises(InputError) as raised:
                ask(lab, requests(1))
            assert str(raised.value).endswith("); allow_partial=true scores the others")


@pytest.mark.parametrize(
    "said", ["tokens " * 2**17, "exceed" * 2**17, "prompt " * 2**17, "context " * 2**17, "x" * 2**21, "\n" * 2**19]
)
def test_only_the_beginning_of_a_long_error_message_reaches_a_pattern(monkeypatch, said):
    seen = []

    class Pattern:
        """Records the length of what is searched."""

        def search(self, text):
            seen.append(len(text))

    monkeypatch.setattr(error_replies, "OF_LENGTH", Pattern())
    monkeypatch.setattr(error_replies, "OF_PARAMETER", Pattern())
    for body in (said.encode(), json.dumps({"error": {"message": said}}).encode(), {"error": {"message": said}}):
        error = refusal(400, body, SERVER, REQUEST, True)
        assert len(str(error)) < 1000
    assert len(seen) == 6
    assert max(seen) <= error_replies.MOST_READ


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(client, "MOST_BYTES", 2**20)


def large(size):
    return json.dumps({"choices": [{"message": {"content": "x" * size}, "finish_reason": "stop"}]}).encode()


BOMB = gzip.compress(large(2**27), 9)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(body=large(2**21)), "a reply of more than 1 MiB"),
        (Fault(body=BOMB, headers={"Content-Encoding": "gzip"}), "a reply of more than 1 MiB"),
        (Fault(body=zlib.compress(large(2**25)), headers={"Content-Encoding": "deflate"}), "a reply of more than 1 M"),
        (Fault(body=BOMB, headers={"Content-Encoding": "gzip, gzip"}), "Content-Encoding 'gzip, gzip', expected"),
        (Fault(body=b"{}", headers={"Content-Encoding": "br"}), "Content-Encoding 'br', expected identity"),
        (Fault(body=b"{}", headers={"Content-Encoding": "gzip"}), "a reply that cannot be decompressed"),
        (Fault(code=500, body=BOMB, headers={"Content-Encoding": "gzip"}), "status 500: {"),
        (Fault(code=503, body=b"x" * 2**25), "status 503: xxx"),
    ],
)
def test_a_large_reply_is_not_received_whole(tmp_path, no_waiting, small, fault, says):
    with (
        loopback(lambda *_: fault) as server,
        judge(tmp_path, server.base_url, max_retries=0) as lab,
        pytest.raises(InputError) as raised,
    ):
        ask(lab, requests(1))
    assert says in str(raised.value)
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
def test_a_compressed_reply_is_read(tmp_path, encoding):
    compress = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[encoding]
    body = json.dumps({"model": "m", "choices": [{"message": {"content": "[[5]]"}, "finish_reason": "stop"}]})
    fault = Fault(body=compress(body.encode()), headers={"Content-Encoding": encoding})
    with loopback(lambda *_: fault) as server, judge(tmp_path, server.base_url) as lab:
        assert ask(lab, requests(1))[0].text == "[[5]]"
    assert server.headers[0]["accept-encoding"] == "identity"


@pytest.mark.parametrize("code", [200, 500])
def test_a_body_that_drips_is_given_up_after_the_time_of_a_try(tmp_path, no_waiting, code):
    fault = Fault(code=code, body=large(1000), drip=0.05)
    with (
        loopback(lambda *_: fault) as server,
        judge(tmp_path, server.base_url, timeout=0.7, max_retries=0) as lab,
        pytest.raises(InputError, match=r"no reply within 0\.7 s"),
    ):
        ask(lab, requests(1))


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_server_is_refused_before_anything_is_sent_there(tmp_path, code):
    with loopback() as other, loopback() as server:
        target = f"{other.base_url}/chat/completions?key={KEY}"
        with loopback(lambda *_: Fault(code=code, body=b"", headers={"Location": target})) as server:
            with judge(tmp_path, server.base_url, concurrency=1) as lab, pytest.raises(InputError) as raised:
                ask(lab, requests(5))
            assert len(server.bodies) == 1
        assert other.bodies == []
    assert str(raised.value) == (
        f"judge lab: the server at {server.base_url} redirects to {other.base_url}/chat/completions, which is not "
        f"followed; if that address is meant, set judge.base_url={other.base_url}"
    )


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("https://127.0.0.1:{port}/v1/chat/completions", "redirects to https://127.0.0.1:"),
        ("http://localhost:{port}/v1/chat/completions", "redirects to http://localhost:"),
        ("//evil.invalid/v1", "redirects to http://evil.invalid/v1, which is not followed; if that"),
        ("http://user:pw@evil.invalid/", "redirects to http://evil.invalid/, which"),
        ("http://a:b/", "redirects to an invalid address"),
        ("file:///etc/passwd", "redirects to file:"),
        ("/v1/chat/completions/", "/v1/chat/completions/, which is not followed; if that"),
    ],
)
def test_a_redirect_to_any_address_is_refused(tmp_path, location, says):
    def fault(_, body):
        return Fault(code=307, body=b"", headers={"Location": location.format(port=port)})

    with loopback(fault) as server, judge(tmp_path, server.base_url) as lab:
        port = server.base_url.rpartition(":")[2].removesuffix("/v1")
        with pytest.raises(InputError) as raised:
            ask(lab, requests(1))
        assert len(server.bodies) == 1
    assert says in str(raised.value)


def test_a_position_of_many_digits_is_read():
    assert shorter(REQUEST, 100, "context length " + "9" * 5000).max_tokens == 50


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"error": "a text"}, "status 400: a text"),
        ({"detail": [{"msg": "no"}]}, 'status 400: [{"msg": "no"}]'),
        ({"object": "error", "message": "vllm says"}, "status 400: vllm says"),
        ({"error": {"message": {"a": 1}}}, 'status 400: {"a": 1}'),
        (b"plain", "status 400: plain"),
        (b"\xff", "status 400: \ufffd"),
        (b"\x1b[31mred", "status 400:  [31mred"),
        ([1], "status 400: [1]"),
        (None, "status 400"),
    ],
)
def test_an_error_of_any_form_is_shown(body, says):
    found = refusal(400, body, SERVER, REQUEST, True)
    assert isinstance(found, Unanswered)
    assert found.cause == says


def test_a_prompt_that_is_too_long_is_distinguished_from_other_refusals():
    assert isinstance(refusal(400, {"error": {"code": "context_length_exceeded"}}, SERVER, REQUEST, False), TooLong)
