"""Requests of lm-eval: each is computed once, in chunks, and sampled answers are drawn by a seed."""

import json
import pickle
from functools import partial

import pytest
from lm_eval.api.instance import Instance

from sftmix.errors import InputError
from sftmix.evaluation.judge.journal import open_journal, read_journal
from sftmix.evaluation.lm_eval.model import (
    JournaledLM,
    ScoringOptions,
    ScoringReply,
    ScoringRequest,
    _chunks,
    answer_chunk,
    render_chat,
    why_no_reply,
)
from sftmix.evaluation.model_pool import LoadedModel, ModelPool
from sftmix.models.loading import load_causal_lm
from sftmix.models.tokenizer import load_tokenizer

OPTIONS = ScoringOptions(batch_size=2, max_length=512, add_bos_token=None, seed=0)


@pytest.fixture(scope="module")
def stories(shared):
    folder = str(shared / "models" / "stories260K")
    return LoadedModel(load_causal_lm(folder, None).eval(), load_tokenizer(folder, None, None))


class CountingPool:
    """Replies by the length of the first text. It can fail before a chunk."""

    def __init__(self, killed_at=None):
        self.chunks, self.killed_at = [], killed_at

    def map(self, _, chunks):
        for place, chunk in enumerate(chunks):
            if place == self.killed_at:
                raise KeyboardInterrupt
            self.chunks.append(chunk)
            yield place, [ScoringReply([-float(len(request.args[0])), False], 0) for request in chunk]


def instances(*args, kind="loglikelihood"):
    return [Instance(kind, {}, arg, 0, metadata=("task", number, 1)) for number, arg in enumerate(args)]


@pytest.fixture
def ask(tmp_path):
    """A function that gives pairs of texts to a model whose requests a pool computes."""

    def asked(pool, *args, kind="loglikelihood"):
        with open_journal(tmp_path / "requests.jsonl", why_no_reply) as journal:
            lm = JournaledLM(pool, journal, OPTIONS, tokenizer=None, title="", show_progress=False)
            return getattr(lm, kind)(instances(*args, kind=kind))

    return asked


def test_a_killed_evaluation_computes_only_the_rest(ask, tmp_path):
    args = [(f"{k} " * (k + 1), choice) for k in range(5) for choice in (" a", " b")]
    killed = CountingPool(killed_at=2)
    with pytest.raises(KeyboardInterrupt):
        ask(killed, *args)
    with (tmp_path / "requests.jsonl").open("a") as file:
        file.write('{"key": "torn')
    rest = CountingPool()
    found = ask(rest, *args)
    assert found == [(-float(len(context)), False) for context, _ in args]
    computed = [request.args for pool in (killed, rest) for chunk in pool.chunks for request in chunk]
    assert sorted(computed) == sorted(args)
    assert ask(None, *args[::-1]) == found[::-1]


def test_a_repeated_request_is_computed_once_and_a_sampled_one_each_time(ask):
    pool = CountingPool()
    ask(pool, ("a", " b"), ("a", " b"))
    assert [len(chunk) for chunk in pool.chunks] == [1]
    pool = CountingPool()
    sampling = {"until": [], "do_sample": True}
    ask(pool, ("a", sampling), ("a", sampling), ("b", {"until": []}), ("b", {"until": []}), kind="generate_until")
    assert [[request.args[0] for request in chunk] for chunk in pool.chunks] == [["a", "a"], ["b"]]


def test_the_choices_of_a_question_stay_in_one_chunk_and_the_longest_come_first():
    requests = {
        f"{length}{choice}": ScoringRequest("loglikelihood", ("x" * length, choice))
        for length in (1, 9, 5)
        for choice in "ab"
    }
    assert _chunks(requests, 2) == [["9a", "9b", "5a", "5b"], ["1a", "1b"]]
    generation = {str(k): ScoringRequest("generate_until", (str(k), {"until": [str(k % 2)]})) for k in range(4)}
    assert _chunks(generation, 4) == [["0", "2"], ["1", "3"]], "other settings are another batch"


def test_what_is_not_a_reply_is_read_as_none(tmp_path):
    good = {"kind": "loglikelihood", "value": [-1.0, True], "num_cut": 0}
    bad = [{"value": [-1.0, 1]}, {"value": "a"}, {"kind": "generate_until"}, {"num_cut": None}, {"kind": "other"}]
    assert why_no_reply(good) is None
    assert why_no_reply({"kind": "loglikelihood_rolling", "value": -1.0, "num_cut": 0}) is None
    assert all(why_no_reply({**good, **change}) for change in bad)
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps({"key": "a", **good}) + "\n" + json.dumps({"key": "b", **good, **bad[1]}) + "\n")
    assert list(read_journal(file, why_no_reply)) == ["a"]


def test_sampled_answers_are_the_same_in_every_process_and_others_under_another_seed(stories):
    sampling = {"until": ["\n"], "do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    chunk = [ScoringRequest("generate_until", ("Once upon a time", sampling))] * 2
    compute = partial(answer_chunk, options=OPTIONS)
    first = compute(stories, chunk)
    assert pickle.loads(pickle.dumps(compute))(stories, chunk) == first
    assert first[0] != first[1]
    assert answer_chunk(stories, chunk, options=OPTIONS._replace(seed=1)) != first


def test_a_cut_prompt_is_counted_as_lm_eval_cuts_it(stories):
    def num_cut(context, kind="loglikelihood", second=" a", max_length=512):
        request = ScoringRequest(kind, (context, second))
        [reply] = answer_chunk(stories, [request], options=OPTIONS._replace(max_length=max_length))
        return reply.num_cut

    text = "Once upon a time there was a cat"
    length = len(stories.tokenizer.encode(text + " a"))
    assert num_cut(text, max_length=length - 1) == 0, "the last token is not read"
    assert num_cut(text, max_length=length - 4) == 3
    length = len(stories.tokenizer.encode(text))
    short = {"until": [], "max_gen_toks": 4}
    assert num_cut(text, "generate_until", short, max_length=length + 4) == 0
    assert num_cut(text, "generate_until", short, max_length=length + 2) == 2
    [reply] = answer_chunk(stories, [ScoringRequest("loglikelihood_rolling", (text * 50,))], options=OPTIONS)
    assert reply.num_cut == 0
    assert reply.value < 0


def test_an_empty_choice_is_refused_with_its_question(ask):
    with pytest.raises(InputError, match=r"^task task, question 1: a choice is empty$"):
        ask(CountingPool(), ("a", " b"), ("a", ""))


def test_a_template_that_refuses_a_system_turn_is_given_none(stories):
    import copy

    tokenizer = copy.deepcopy(stories.tokenizer)
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}"
    tokenizer.chat_template = f"{refusing}<{{{{ messages[0].content }}}}>"
    assert render_chat(tokenizer, turns) == "<u>"
    assert ModelPool.holding(*stories).tokenizer.chat_template is None
