"""Scores of lm-eval over finished prompts, against an independent scorer of forty lines."""

import hashlib
import json
import random
import socket

import pytest
import torch

from sftmix.errors import InputError
from sftmix.evaluation.judge.journal import open_journal
from sftmix.evaluation.lm_eval.model import JournaledLM, ScoringOptions, why_no_reply
from sftmix.evaluation.medical.benchmarks import read_questions
from sftmix.evaluation.medical.prompts import MedicalPrompt, draw_shots, finished_prompt
from sftmix.evaluation.medical.scorer import (
    USUAL_TOKENS,
    Scored,
    Scorer,
    chance_of_letters,
    prompts_sha256,
    puts_bos,
    task_of,
)
from sftmix.evaluation.model_pool import ModelPool

BENCHMARKS = ("MedQA", "MedQA-5", "PubMedQA", "MedMCQA")


class Oracle:
    """An independent reader, renderer and scorer: the published files and torch only."""

    def __init__(self, folder, model, tokenizer):
        self.folder, self.model, self.tokenizer = folder, model, tokenizer

    def rows(self, benchmark):
        """(id, context, question, options, place of the right one) of the test, and of the shots' pool."""
        if benchmark == "PubMedQA":
            labelled = json.loads((self.folder / "ori_pqal.json").read_text())
            truth = json.loads((self.folder / "test_ground_truth.json").read_text())
            every = [
                (
                    k,
                    "\n".join(v["CONTEXTS"]),
                    v["QUESTION"],
                    ["yes", "no", "maybe"],
                    "ynm".index(v["final_decision"][0]),
                )
                for k, v in labelled.items()
            ]
            return [r for r in every if r[0] in truth], sorted(r for r in every if r[0] not in truth)
        name = {"MedQA": "medqa_us_4options_test", "MedQA-5": "medqa_us_5options_test", "MedMCQA": "medmcqa_dev"}
        lines = [json.loads(line) for line in (self.folder / f"{name[benchmark]}.jsonl").read_text().splitlines()]
        if benchmark == "MedMCQA":
            every = [(x["id"], None, x["question"], [x["op" + c] for c in "abcd"], x["cop"] - 1) for x in lines]
        else:
            options = [(x, [x["options"][c] for c in sorted(x["options"])]) for x in lines]
            keys = [hashlib.sha256(json.dumps([x["question"], *o]).encode()).hexdigest()[:12] for x, o in options]
            every = [
                (k, None, x["question"], o, ord(x["answer_idx"]) - 65) for k, (x, o) in zip(keys, options, strict=True)
            ]
        return every[:-200], sorted(every[-200:])

    def item(self, row, letter=""):
        _, context, question, options, _ = row
        head = f"{context} \n " if context else ""
        body = "".join(f"({'ABCDE'[k]}) {option} \n " for k, option in enumerate(options))
        return f"{head}**Question:** {question} \n {body}**Answer:**({letter}"

    def prompt(self, benchmark, round, row, pool, limit):
        """The prompt, or None if the question by itself does not fit."""
        shots = random.Random(f"{benchmark}/{round}/{row[0]}").sample(pool, 3)
        words = (row[1] or "").split()
        while True:
            intro = "The following are multiple choice questions (with answers) about medical knowledge."
            text = " \n ".join([intro, *(self.item(s, "ABCDE"[s[4]]) for s in shots), self.item(row)])
            if len(self.tokenizer(text, verbose=False)["input_ids"]) <= limit:
                return text
            if shots:
                shots = shots[1:]
            elif words:
                words = words[1:]
                row = (row[0], " ".join(words), *row[2:])
            else:
                return None

    @torch.no_grad()
    def score(self, text, num_options, answer):
        """Log-probabilities of the letters, and whether the likeliest letter and the likeliest token are right."""
        ids = self.tokenizer(text)["input_ids"]
        letters = [self.tokenizer(text + c)["input_ids"][len(ids)] for c in "ABCDE"[:num_options]]
        logprobs = self.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        found = [float(logprobs[k]) for k in letters]
        return found, found.index(max(found)) == answer, int(logprobs.argmax()) == letters[answer]


@pytest.fixture(scope="module")
def stories(shared):
    from sftmix.models.loading import load_causal_lm
    from sftmix.models.tokenizer import load_tokenizer

    folder = str(shared / "models" / "stories260K")
    return load_causal_lm(folder, None).eval(), load_tokenizer(folder, None, None)


def scorer_of(model, tokenizer, journal):
    positions = model.config.max_position_embeddings or USUAL_TOKENS
    options = ScoringOptions(8, positions, puts_bos(tokenizer), seed=0)
    pool = ModelPool.holding(model, tokenizer)
    return Scorer(JournaledLM(pool, journal, options, tokenizer=tokenizer, title="", show_progress=False))


@pytest.fixture
def journal(tmp_path):
    with open_journal(tmp_path / "requests.jsonl", why_no_reply) as journal:
        yield journal


@pytest.fixture
def scorer(stories, journal):
    return scorer_of(*stories, journal)


@pytest.mark.parametrize("limit", [3, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_prompts_and_logprobs_are_an_independent_scorers(benchmark, limit, shared, tmp_path, stories, scorer):
    bench = shared / "data" / "bench"
    questions = read_questions(benchmark, "held_out", bench, tmp_path)
    oracle = Oracle(bench, *stories)
    test, pool = oracle.rows(benchmark)
    prompts = [
        finished_prompt(
            row,
            draw_shots(benchmark, 2, row.id, questions.pool, 3),
            num_tokens=scorer.num_tokens,
            max_tokens=scorer.max_tokens,
        )
        for row in questions.test[:limit]
    ]
    expected = [oracle.prompt(benchmark, 2, row, pool, 512) for row in test[:limit]]
    assert [p.text if p.fits else None for p in prompts] == expected
    fitting = [p for p in prompts if p.fits]
    for prompt, scored in zip(fitting, scorer.score(fitting, ""), strict=True):
        logprobs, right, right_free = oracle.score(prompt.text, len(prompt.letters), prompt.answer)
        assert scored.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert (scored.is_right, scored.is_right_free) == (right, right_free)


def short_prompts(num):
    rows = [
        ("ABCD"[k % 4], f"**Question:** {k}? \n (A) a \n (B) b \n (C) c \n (D) d \n **Answer:**(") for k in range(num)
    ]
    return [{"prompt": text, "choices": list("ABCD"), "answer": "ABCD".index(letter)} for letter, text in rows]


def test_two_ranks_of_lm_eval_ask_together_what_one_asks():
    import datasets
    from lm_eval.tasks import TaskManager

    def asked(rank, world_size):
        table = datasets.Dataset.from_list(short_prompts(9))
        (task,) = TaskManager(include_defaults=False).load([task_of(table)])["tasks"].values()
        task.build_all_requests(rank=rank, world_size=world_size)
        return [(instance.doc_id, instance.args) for instance in task.instances]

    assert sorted(asked(0, 2) + asked(1, 2)) == sorted(asked(0, 1))


def test_nothing_is_printed_and_nothing_is_asked_of_a_network(scorer, monkeypatch, capfd):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    prompts = [
        MedicalPrompt(str(k), p["prompt"], tuple("ABCD"), p["answer"], ()) for k, p in enumerate(short_prompts(5))
    ]
    assert len(scorer.score(prompts, "")) == 5
    assert capfd.readouterr() == ("", "")


def test_a_letter_is_one_token_after_the_bracket(any_tokenizer, stories, journal):
    model, _ = stories
    scorer_of(model, any_tokenizer, journal)


def test_a_tokenizer_that_joins_bracket_and_letter_is_refused(stories, journal):
    class Joining:
        bos_token_id = None

        def encode(self, text, **_):
            return text.replace("(A", "").split()

    with pytest.raises(InputError, match=r"joins \( and A into one token"):
        scorer_of(stories[0], Joining(), journal)


def numbered_prompts(num, text="text"):
    return [MedicalPrompt(f"q{k}", f"{text} {k}", ("A", "B"), k % 2, ()) for k in range(num)]


def test_a_prompt_that_does_not_fit_is_not_asked_and_no_prompt_is_scored_twice(scorer, journal):
    one, two = numbered_prompts(2)
    found = scorer.score([two._replace(fits=False), one], "")
    assert found[0] is None
    assert found[1] is not None
    assert len(journal) == 2, "a request for each letter"
    scorer.lm.pool = None  # nothing is computed
    assert scorer.score([one], "") == found[1:]
    assert scorer.score([two._replace(fits=False)], "") == [None]


def test_another_order_or_text_has_another_hash():
    assert prompts_sha256(numbered_prompts(2)) != prompts_sha256(numbered_prompts(2)[::-1])
    assert prompts_sha256(numbered_prompts(2)) != prompts_sha256(numbered_prompts(2, "other"))


def test_a_model_that_always_picks_one_letter_is_right_as_often_as_that_letter():
    asked = [p._replace(answer=0 if k < 3 else 1) for k, p in enumerate(numbered_prompts(10))]
    always_first = [Scored((-1.0, -2.0), p.answer == 0, False) for p in asked]
    assert chance_of_letters(asked, always_first) == pytest.approx(30)
    halves = [Scored((-1.0, -2.0) if k % 2 else (-2.0, -1.0), False, False) for k in range(10)]
    assert chance_of_letters(asked, halves) == pytest.approx(50)
    assert chance_of_letters(asked, [None] * 10) == 0
