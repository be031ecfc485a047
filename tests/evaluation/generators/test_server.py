"""Answers of a model behind a server: their order, seeds that depend on the prompt only, and no repeated calls."""

import json

import pytest

from loopback import MODEL, Fault, loopback
from sftmix.data.example import Message
from sftmix.errors import InputError
from sftmix.evaluation.generators.answering import Prompt, answer_all
from sftmix.evaluation.generators.server import ServerGenerator
from sftmix.evaluation.judge.client import Server


def prompts(number, round=1):
    return [Prompt(f"q{i}", 1, round, (Message("user", f"Say {i}."),), 0.7, 64) for i in range(number)]


def generator(base_url, seed=0, **changes):
    settings = {"base_url": base_url, "api_key": None, "concurrency": 4, "max_retries": 2, "timeout": 5.0}
    return ServerGenerator(Server("generate=openai", "m", **(settings | changes)), identity="abc", seed=seed)


def echo(body):
    return f"You said: {body['messages'][-1]['content']}"


def test_answers_come_with_their_places_finish_and_tokens(no_waiting):
    faults = {1: Fault.status(429), 3: Fault(changes={"finish": "length", "text": ""})}
    with loopback(faults, text=echo, seconds=0.01) as server:
        answers = dict(generator(server.base_url).generate(prompts(20)))
    assert sorted(answers) == list(range(20))
    assert len(server.bodies) == 21
    cut = [place for place, answer in answers.items() if answer.finish == "length"]
    assert len(cut) == 1
    assert answers[cut[0]].text == ""  # a model may say nothing
    for place, answer in answers.items():
        assert place in cut or (answer.text, answer.finish) == (f"You said: Say {place}.", "stop")
        assert (answer.num_tokens, len(answer.prompt_sha256), answer.num_dropped_turns) == (9, 64, 0)
    assert server.most_at_once == 4


def test_a_seed_depends_on_question_turn_and_round_only():
    def seeds(asked, seed=0):
        with loopback() as server:
            list(generator(server.base_url, seed, concurrency=1).generate(asked))
        assert all(body["temperature"] == 0.7 and body["top_p"] == 1.0 for body in server.bodies)
        assert all(body["max_tokens"] == 64 and 0 <= body["seed"] < 2**31 for body in server.bodies)
        return {body["messages"][0]["content"]: body["seed"] for body in server.bodies}

    all_at_once = seeds(prompts(6))
    assert len(set(all_at_once.values())) == 6
    assert seeds(prompts(6)[::-1]) == all_at_once
    assert seeds(prompts(6)[2:4]).items() <= all_at_once.items()
    for other in (seeds(prompts(6, round=2)), seeds(prompts(6), seed=1)):
        assert not set(other.values()) & set(all_at_once.values())


def test_finished_answers_are_kept_when_a_later_one_fails(no_waiting):
    def busy(_, body):
        return Fault.status(500) if body["messages"][0]["content"] == "Say 2." else None

    with loopback(busy, text=echo) as server:
        came = []
        with pytest.raises(InputError, match=r"generate=openai: 1 of 5 answers failed \(q2/turn 1/round 1: status 500"):
            came.extend(place for place, _ in generator(server.base_url).generate(prompts(5)))
    assert sorted(came) == [0, 1, 3, 4]


def test_a_second_run_on_other_weights_is_refused_and_the_answers_of_the_first_stay(tmp_path, no_waiting):
    def answers(base_url):
        made = generator(base_url, concurrency=1, max_retries=0)
        return answer_all(prompts(6), made, tmp_path, title="test", show_progress=False)

    def breaks(place, _):
        return Fault.status(500) if place >= 3 else None

    with loopback(breaks, model="weights-A") as server, pytest.raises(InputError, match="3 of 6 answers failed"):
        answers(server.base_url)
    file = next(tmp_path.glob("answers-*.jsonl"))
    kept = file.read_text()
    first = json.loads(kept.splitlines()[0])
    assert (first["served_model"], first["system_fingerprint"]) == ("weights-A", "fp_loopback")
    assert first["date"].startswith("20")
    with loopback(model="weights-B") as server:
        with pytest.raises(InputError) as raised:
            answers(server.base_url)
        assert len(server.bodies) <= 2
    assert str(raised.value) == (
        f"the server runs model weights-B now, but {file} holds answers of weights-A; "
        "have that model served again, or move that file away"
    )
    assert file.read_text() == kept
    with loopback(model="weights-A") as server:
        assert {answer.served_model for answer in answers(server.base_url)} == {"weights-A"}
        assert len(server.bodies) == 3


def conversation(*lengths, id="q"):
    """User turns of so many words, with an answer of two words after each but the last."""
    turns = [Message("system", "Be brief.")]
    for i, length in enumerate(lengths):
        turns += [Message("assistant", f"answer {i}")] if i else []
        turns.append(Message("user", " ".join([f"turn{i}"] * length)))
    return Prompt(id, len(lengths), 1, tuple(turns), 0.7, 64)


def words(body):
    return sum(len(message["content"].split()) for message in body["messages"])


def holds(positions, message, code=400, error=None):
    """A server of a model with so many positions, one a word, that refuses as a real one does."""

    def refuse(_, body):
        if words(body) + body["max_tokens"] <= positions:
            return None
        return Fault.status(code, message.format(positions=positions, prompt=words(body), **body), error)

    return refuse


@pytest.mark.parametrize(
    ("code", "message"),
    [  # vLLM, OpenAI, SGLang, TGI, llama.cpp
        (400, "This model's maximum context length is {positions} tokens and your request has {prompt} input tokens."),
        (400, "The input ({prompt} tokens) is longer than the model's context length ({positions} tokens)."),
        (422, "`inputs` tokens + `max_new_tokens` must be <= {positions}. Given: {prompt} `inputs` tokens"),
        (413, "the request exceeds the available context size ({positions} tokens), try increasing it"),
        (400, "Input is too long for requested model"),
    ],
)
def test_the_oldest_turns_of_a_conversation_that_is_too_long_go_and_the_last_never(code, message):
    asked = [conversation(50, 50, id="fits"), conversation(200, 50, 50, id="long"), conversation(9, 300, id="alone")]
    with loopback(holds(256, message, code), text=echo) as server:
        answers = dict(generator(server.base_url).generate(asked))
    fits, long, alone = (answers[place] for place in range(3))
    assert (fits.finish, fits.num_dropped_turns, fits.text) == ("stop", 0, "You said: " + " ".join(["turn1"] * 50))
    assert (long.finish, long.num_dropped_turns, long.text) == ("stop", 2, "You said: " + " ".join(["turn2"] * 50))
    whole = next(body for body in server.bodies if "turn2" in str(body) and "turn0" not in str(body))
    assert [message["role"] for message in whole["messages"]] == ["system", "user", "assistant", "user"]
    assert whole["max_tokens"] == 64
    assert (alone.text, alone.finish, alone.num_tokens, alone.num_dropped_turns) == ("", "length", 0, 2)
    assert len({fits.prompt_sha256, long.prompt_sha256, alone.prompt_sha256}) == 3
    assert len(server.bodies) < 12


def test_an_answer_gets_less_room_where_a_quarter_of_the_positions_or_the_last_turn_leaves_less():
    says = "maximum context length is {positions} tokens"
    with loopback(holds(128, says)) as server:  # a quarter of the positions is 32: the turns stay
        (answer,) = dict(generator(server.base_url).generate([conversation(20, 60)])).values()
    assert answer.num_dropped_turns == 0
    assert [body["max_tokens"] for body in server.bodies] == [64, 32]
    with loopback(holds(128, says)) as server:  # 2 words of the system, 118 of the last turn: 8 are left
        (answer,) = dict(generator(server.base_url).generate([conversation(20, 118)])).values()
    assert answer.num_dropped_turns == 2
    assert [body["max_tokens"] for body in server.bodies] == [64, 32, 64, 32, 16, 8]


def test_the_journal_keeps_how_many_turns_a_prompt_lost(tmp_path):
    says = "maximum context length is {positions} tokens"
    asked = [conversation(5, id="short"), conversation(9, 300, id="alone")]
    for wanted in (True, False):
        with loopback(holds(256, says)) as server:
            answers = answer_all(asked, generator(server.base_url), tmp_path, title="test", show_progress=False)
            assert bool(server.bodies) == wanted
        assert [answer.finish for answer in answers] == ["stop", "length"]


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "max_tokens must be at least 1",
        "max_tokens is too large: 5000. This model supports at most 4096 completion tokens",
        "Invalid authentication token",
        "logprobs are not supported",
    ],
)
def test_another_refusal_that_names_tokens_is_no_long_prompt(message):
    with loopback(lambda *_: Fault.status(400, message)) as server:
        with pytest.raises(InputError, match="the server refuses model m, q0/turn 1/round 1"):
            list(generator(server.base_url, concurrency=1).generate(prompts(3)))
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault.status(404, "no model m"), "refuses model m, q1/turn 1/round 1 .status 404: no model m"),
        (Fault(changes={"model": "other"}), f"it changed its model meanwhile: {MODEL}, other"),
        (Fault(changes={"usage": None}), "an answer without its number of tokens"),
        (Fault(changes={"finish": "tool_calls"}), "an answer that ended by tool_calls"),
    ],
)
def test_what_is_no_answer_ends_in_one_line(no_waiting, fault, says):
    def second(_, body):
        return fault if body["messages"][0]["content"] == "Say 1." else None

    with loopback(second) as server, pytest.raises(InputError, match=says):
        list(generator(server.base_url, concurrency=1).generate(prompts(3)))


def test_a_filtered_prompt_does_not_end_the_other_calls(no_waiting):
    def second(_, body):
        fault = Fault.status(400, "no", "content_filter")
        return fault if body["messages"][0]["content"] == "Say 1." else None

    with loopback(second, text=echo) as server:
        came = []
        with pytest.raises(InputError, match=r"1 of 4 answers failed \(q1/turn 1/round 1: the server's content filter"):
            came.extend(place for place, _ in generator(server.base_url, concurrency=1).generate(prompts(4)))
    assert sorted(came) == [0, 2, 3]


def test_answers_of_reasoning_only_are_counted_and_a_refusal_is_an_answer(capsys):
    def edit(place):
        messages = [{"content": None, "reasoning_content": "Hm"}, {"content": None, "refusal": "I will not."}, {}]
        return lambda reply: reply["choices"][0]["message"].update(messages[place])

    with loopback(lambda place, _: Fault(edit=edit(place)), text=echo) as server:
        answers = dict(generator(server.base_url, concurrency=1).generate(prompts(3)))
    assert [answers[place].text for place in range(3)] == ["", "I will not.", "You said: Say 2."]
    assert capsys.readouterr().err == (
        "generate=openai: 1 of 3 answers are reasoning only and count as empty: raise suite.max_new_tokens, or switch "
        "reasoning off at the server\n"
    )


def test_renamed_and_dropped_parameters_are_sent_so_and_are_in_the_settings():
    changes = {"rename": {"max_tokens": "max_completion_tokens"}, "drop": ["seed", "top_p"]}
    with loopback(text=echo) as server:
        made = generator(server.base_url, **changes)
        assert len(list(made.generate(prompts(1)))) == 1
    assert set(server.bodies[0]) == {"model", "messages", "temperature", "max_completion_tokens"}
    assert made.settings["rename_parameters"] == {"max_tokens": "max_completion_tokens"}
    assert made.settings["drop_parameters"] == ["seed", "top_p"]


def test_a_reader_that_stops_early_leaves_nothing_running():
    with loopback(seconds=0.01) as server:
        answers = generator(server.base_url).generate(prompts(50))
        next(answers)
        answers.close()
        assert len(server.bodies) < 50
    assert list(generator(server.base_url).generate([])) == []


def test_what_an_answer_depends_on_is_in_the_settings():
    made = generator("http://localhost:1/v1", extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert made.settings == {
        "backend": "openai",
        "model": "m",
        "identity": "abc",
        "seed": 0,
        "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
    }
