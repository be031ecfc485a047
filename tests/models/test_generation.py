import math

import pytest
import torch
from scipy.stats import chisquare

from sftmix.models.generation import KeyedGumbel, generate_answer, generate_batch, gumbel_noise
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


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_softmax_of_logits_over_temperature(temperature):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.3, -1.0, -2.5, -math.inf])
    number = 20_000
    draw = KeyedGumbel([temperature] * number, [f"key {k}" for k in range(number)])
    tokens = draw(torch.empty(number, 0), logits.expand(number, -1)).argmax(dim=1)
    counts = torch.bincount(tokens, minlength=len(logits))
    assert counts[-1] == 0
    expected = number * torch.softmax(logits[:-1].double() / temperature, dim=0)
    assert chisquare(counts[:-1].numpy(), expected.numpy()).pvalue > 0.001


def test_later_draws_of_a_key_follow_the_softmax_too_and_are_others():
    logits = torch.tensor([1.0, 0.0, -1.0])
    draw = KeyedGumbel([1.0] * 200, [f"key {k}" for k in range(200)])
    tokens = torch.stack([draw(torch.empty(200, 0), logits.expand(200, -1)).argmax(dim=1) for _ in range(100)])
    counts = torch.bincount(tokens.flatten(), minlength=3)
    expected = 20_000 * torch.softmax(logits.double(), dim=0)
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.001
    pairs = torch.bincount((tokens[:-1] * 3 + tokens[1:]).flatten(), minlength=9).view(3, 3).double()
    independent = pairs.sum(1, keepdim=True) * pairs.sum(0, keepdim=True) / pairs.sum()
    assert ((pairs - independent).abs() < 4 * independent.sqrt()).all()


def test_noise_has_the_mean_and_variance_of_gumbel():
    noise = gumbel_noise(400_000, torch.Generator().manual_seed(0)).double()
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


def test_a_model_in_training_goes_on_training(tiny_lm, tiny_tokenizer):
    tiny_lm.train()
    text = generate_answer(tiny_lm, tiny_tokenizer, [5, 9, 17], end_token_id=STOP, max_new_tokens=8)
    assert tiny_lm.training
    [(ids, _)] = generate_batch(tiny_lm, [[5, 9, 17]], stop_ids=[STOP], max_new_tokens=8)
    assert text == tiny_tokenizer.decode(ids, skip_special_tokens=True).strip()
