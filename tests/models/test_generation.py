import hashlib
import math
import threading

import pytest
import torch
from scipy.stats import chisquare

from sftmix.models import generation
from sftmix.models.generation import (
    KeyedGumbel,
    draw_gumbel,
    drawing_threads,
    generate_batch,
)
from sftmix.models.tiny import tiny_llama

STOP = 1


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny_lm(tiny_tokenizer):
    return tiny_llama(
        tiny_tokenizer, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=128, seed=0
    ).eval()


def random_prompts(number: int, vocab: int = 400) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 30, (number,), generator=generator).tolist()
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]


def continued(causal_lm, prompts, batch_size, *, temperature=0.0, seed=0, max_new_tokens=20):
    """The continuations, the prompts taken from behind."""
    found = {}
    for start in range(0, len(prompts), batch_size):
        places = list(reversed(range(len(prompts))))[start : start + batch_size]
        found |= zip(
            places,
            generate_batch(
                causal_lm,
                [prompts[p] for p in places],
                stop_ids=[STOP],
                max_new_tokens=max_new_tokens,
                temperatures=[temperature] * len(places),
                keys=[f"{seed}/{p}" for p in places],
            ),
            strict=True,
        )
    return [found[p] for p in range(len(prompts))]


def test_a_greedy_answer_equals_the_answer_of_transformers(tiny_lm):
    prompts = random_prompts(12)
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = tiny_lm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        expected.append(out[0, len(prompt) :].tolist())
    found = [[*ids, STOP] if finish == "stop" else ids for ids, finish in continued(tiny_lm, prompts, 5)]
    assert found == expected


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_no_answer_depends_on_its_neighbours(tiny_lm, temperature):
    prompts = random_prompts(15)
    alone = continued(tiny_lm, prompts, 1, temperature=temperature)
    assert continued(tiny_lm, prompts, 7, temperature=temperature) == alone


def test_another_seed_changes_what_is_drawn_and_nothing_greedy(tiny_lm):
    prompts = random_prompts(10)
    assert continued(tiny_lm, prompts, 5, seed=1) == continued(tiny_lm, prompts, 5)
    first, second = (continued(tiny_lm, prompts, 5, temperature=1.0, seed=s) for s in (0, 1))
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_greedy_and_drawn_rows_share_a_batch(tiny_lm):
    prompts = random_prompts(6)
    temperatures = [0.0, 1.0, 0.0, 0.7, 9e-5, 1.0]
    mixed = generate_batch(
        tiny_lm,
        prompts,
        stop_ids=[STOP],
        max_new_tokens=10,
        temperatures=temperatures,
        keys=[f"0/{p}" for p in range(6)],
    )
    greedy = continued(tiny_lm, prompts, 6, max_new_tokens=10)
    for place, temperature in enumerate(temperatures):
        drawn = generate_batch(
            tiny_lm,
            [prompts[place]],
            stop_ids=[STOP],
            max_new_tokens=10,
            temperatures=[temperature],
            keys=[f"0/{place}"],
        )
        assert [mixed[place]] == drawn
        assert (mixed[place] == greedy[place]) == (temperature < 1e-4)


def drawn_tokens(temperatures, logits, number):
    """The noisy scores of some tokens; no prompt ends."""
    prompts = len(temperatures)
    with drawing_threads() as threads:
        draw = KeyedGumbel(temperatures, [f"key {k}" for k in range(prompts)], [STOP], threads)
        return [draw(torch.zeros(prompts, 3, dtype=torch.long), logits.expand(prompts, -1)) for _ in range(number)]


@pytest.mark.parametrize("in_threads", [False, True])
def test_noise_has_the_bits_of_the_formula_by_the_key(in_threads, monkeypatch):
    """Answers that were kept stay those that would be drawn again."""
    monkeypatch.setattr(generation, "LEAST_FOR_THREADS", 0 if in_threads else 2**60)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    vocab, temperatures = 40_001, [0.7, 1.0, 0.0, 1.3, 0.7]
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3))
    found = drawn_tokens(temperatures, logits, 3)
    for k, temperature in enumerate(temperatures):
        seed = int.from_bytes(hashlib.sha256(f"key {k}".encode()).digest()[:8]) >> 1
        generator = torch.Generator().manual_seed(seed)
        for scores in found:
            noise = -torch.log(-torch.log(torch.rand(vocab, generator=generator)))
            assert torch.equal(scores[k], logits / temperature + noise if temperature else logits)


def rows_drawn(monkeypatch):
    """The numbers of rows that are drawn at a time."""
    plain, numbers = draw_gumbel, []

    def counting(out, generators):
        numbers.append(len(out))
        plain(out, generators)

    monkeypatch.setattr(generation, "draw_gumbel", counting)
    return numbers


def test_a_greedy_answer_goes_on_when_all_drawn_ones_have_ended():
    with drawing_threads() as threads:
        processor = KeyedGumbel([0.7, 0.0], ["a", "b"], [5], threads)
        scores = torch.randn(2, 9)
        processor(torch.tensor([[1], [1]]), scores)
        for last in ([5, 2], [5, 3], [5, 4]):  # the first answer has ended
            assert torch.equal(processor(torch.tensor([[last[0]], [last[1]]]), scores)[1], scores[1])


def test_nothing_is_drawn_for_greedy_and_for_ended_answers(tiny_lm, monkeypatch):
    numbers, prompts = rows_drawn(monkeypatch), [[399], [5, 6], [6, 7, 399]]
    settings = {"max_new_tokens": 12, "keys": ["a", "b", "c"]}
    generate_batch(tiny_lm, prompts, stop_ids=[STOP], temperatures=[0.0, 9e-5, 0.0], **settings)
    assert numbers == []
    answers = generate_batch(tiny_lm, prompts, stop_ids=[399], temperatures=[1.0, 0.0, 1.0], **settings)
    assert [len(ids) for ids, _ in answers] == [12] * 3
    assert numbers == [2] * 13, "one token more than needed, drawn ahead"
    numbers.clear()
    stop = answers[0][0][4]
    lengths = [
        len(ids)
        for ids, _ in generate_batch(tiny_lm, prompts, stop_ids=[stop], temperatures=[1.0, 0.0, 1.0], **settings)
    ]
    steps = min(12, max(lengths) + 1)
    assert lengths[0] <= 4
    assert numbers == [2] + [sum(k <= lengths[p] for p in (0, 2)) for k in range(steps)]


@pytest.mark.parametrize("fails", [None, "model", "draws"])
def test_no_thread_is_left_and_the_model_is_as_before(tiny_lm, monkeypatch, fails):
    monkeypatch.setattr(generation, "LEAST_FOR_THREADS", 0)
    own, seen = tiny_lm.generation_config, set[str]()

    def report(number):
        seen.update(thread.name for thread in threading.enumerate())
        if number == 3 and fails == "model":
            raise KeyboardInterrupt

    def fail(*_):
        raise MemoryError

    if fails == "draws":
        monkeypatch.setattr(generation, "draw_gumbel", fail)
    tiny_lm.train()

    def answer():
        prompts, settings = random_prompts(4), {"stop_ids": [STOP], "max_new_tokens": 6, "each_token": report}
        return generate_batch(tiny_lm, prompts, temperatures=[1.0] * 4, keys=list("abcd"), **settings)

    if fails is None:
        assert len(answer()) == 4
    else:
        with pytest.raises(KeyboardInterrupt if fails == "model" else MemoryError):
            answer()
    if fails != "draws":
        assert any(name.startswith("noise") for name in seen)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("noise")]
    assert tiny_lm.training
    assert tiny_lm.generation_config is own


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_softmax_of_logits_over_temperature(temperature):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.3, -1.0, -2.5, -math.inf])
    number = 20_000
    [first] = drawn_tokens([temperature] * number, logits, 1)
    tokens = first.argmax(dim=1)
    counts = torch.bincount(tokens, minlength=len(logits))
    assert counts[-1] == 0
    expected = number * torch.softmax(logits[:-1].double() / temperature, dim=0)
    assert chisquare(counts[:-1].numpy(), expected.numpy()).pvalue > 0.001


def test_later_draws_of_a_key_follow_the_softmax_too_and_are_others():
    logits = torch.tensor([1.0, 0.0, -1.0])
    tokens = torch.stack([scores.argmax(dim=1) for scores in drawn_tokens([1.0] * 200, logits, 100)])
    counts = torch.bincount(tokens.flatten(), minlength=3)
    expected = 20_000 * torch.softmax(logits.double(), dim=0)
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.001
    pairs = torch.bincount((tokens[:-1] * 3 + tokens[1:]).flatten(), minlength=9).view(3, 3).double()
    independent = pairs.sum(1, keepdim=True) * pairs.sum(0, keepdim=True) / pairs.sum()
    assert ((pairs - independent).abs() < 4 * independent.sqrt()).all()


def test_noise_has_the_mean_and_variance_of_gumbel():
    noise = torch.empty(4, 100_000)
    draw_gumbel(noise, [torch.Generator().manual_seed(seed) for seed in range(4)])
    noise = noise.flatten().double()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)


def test_a_drawn_first_token_of_a_model_follows_its_softmax(tiny_lm):
    with torch.no_grad():
        tiny_lm.lm_head.weight.mul_(8)  # random weights alone draw evenly
        expected = torch.softmax(tiny_lm(torch.tensor([[5, 9, 17]])).logits[0, -1].double() / 0.7, dim=0)
    number = 4000
    drawn = generate_batch(
        tiny_lm,
        [[5, 9, 17]] * number,
        stop_ids=[STOP],
        max_new_tokens=1,
        temperatures=[0.7] * number,
        keys=[f"0/{k}" for k in range(number)],
    )
    tokens = torch.tensor([ids[0] if ids else STOP for ids, _ in drawn])
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    often = expected * number >= 8
    assert often.sum() >= 5
    counts = torch.cat([counts[often], counts[~often].sum()[None]])
    expected = torch.cat([expected[often], expected[~often].sum()[None]]) * number
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.001


def test_what_a_folder_says_of_sampling_does_not_count_and_stays(tiny_lm):
    prompts = random_prompts(6)
    expected = continued(tiny_lm, prompts, 6)
    folder = tiny_lm.generation_config
    folder.temperature, folder.top_p, folder.top_k, folder.do_sample = 0.2, 0.1, 2, True
    folder.repetition_penalty, folder.no_repeat_ngram_size, folder.min_new_tokens = 5.0, 1, 15
    folder.max_length, folder.suppress_tokens = 3, list(range(200))
    before = folder.to_dict()
    assert continued(tiny_lm, prompts, 6) == expected
    assert tiny_lm.generation_config is folder
    assert folder.to_dict() == before


def test_an_answer_ends_at_the_first_of_several_stop_tokens(tiny_lm):
    [(whole, finish)] = generate_batch(tiny_lm, [[5, 9, 17]], stop_ids=[STOP], max_new_tokens=12)
    assert finish == "length"
    assert len(whole) == 12
    stop = whole[4]
    [(cut, finish)] = generate_batch(tiny_lm, [[5, 9, 17]], stop_ids=[STOP, stop], max_new_tokens=12)
    assert finish == "stop"
    assert cut == whole[: whole.index(stop)]


def test_a_pad_token_that_occurs_in_a_prompt_is_read(tiny_lm):
    prompts = [[STOP, 7, STOP, 8], [9, 10, 11, 12, 13, 14, STOP]]
    together = continued(tiny_lm, prompts, 2)
    assert together == continued(tiny_lm, prompts, 1)
    ids = torch.tensor([prompts[0]])
    out = tiny_lm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    [first, _] = together
    assert first[0] == out[0, 4 : 4 + len(first[0])].tolist()


def test_each_token_is_reported_and_nothing_changes(tiny_lm):
    prompts, told = random_prompts(3), []
    settings = {"stop_ids": [STOP], "max_new_tokens": 4}
    answers = generate_batch(tiny_lm, prompts, **settings, each_token=told.append)
    assert told == list(range(1, max(len(ids) + (end == "stop") for ids, end in answers) + 1))
    assert answers == generate_batch(tiny_lm, prompts, **settings)


def test_a_model_in_training_goes_on_training(tiny_lm):
    tiny_lm.train()
    generate_batch(tiny_lm, [[5, 9, 17]], stop_ids=[STOP], max_new_tokens=8)
    assert tiny_lm.training
