"""Answers of the model in this process: batches, draws, chat templates and limits of length."""

import copy
import json

import pytest
import torch

from sftmix.data.encoding import Encoder
from sftmix.data.example import Message
from sftmix.data.templates import set_template
from sftmix.errors import InputError
from sftmix.evaluation.generators.answering import Prompt, answer_all, share_cut
from sftmix.evaluation.generators.hf import HFGenerator
from sftmix.evaluation.model_pool import ModelPool
from sftmix.models.loading import load_causal_lm
from sftmix.models.tiny import tiny_llama
from sftmix.models.tokenizer import load_tokenizer

OPENINGS = ("Once upon a time", "Tim had a red ball", "The dog said", "Lily was sad because", "One day a big bear")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stories(shared):
    folder = str(shared / "models" / "stories260K")
    return load_causal_lm(folder, None).eval(), load_tokenizer(folder, None, None)


def generator_of(stories, *, seed=0, batch_size=16, template="chatml"):
    return HFGenerator(
        ModelPool.holding(*stories), identity="stories", template_name=template, seed=seed, batch_size=batch_size
    )


def asked(number: int, *, temperature: float = 0.0, max_new_tokens: int = 24, round: int = 1) -> list[Prompt]:
    return [
        Prompt(
            f"question {k}",
            1,
            round,
            (Message("user", f"{OPENINGS[k % 5]}{' and then' * k}"),),
            temperature,
            max_new_tokens,
        )
        for k in range(number)
    ]


def answers(generator, prompts):
    found = dict(generator.generate(prompts))
    return [found[place] for place in range(len(prompts))]


def test_a_prompt_has_the_ids_that_training_showed(stories):
    generator = generator_of(stories)
    encoder = Encoder(generator.prompts.tokenizer, 512, "error")
    for prompt in asked(5):
        rendering = encoder.render([Message("user", prompt.turns[0].content)], "A")
        assert (
            generator.prompts.encoder.prompt_ids([Message("user", prompt.turns[0].content)])
            == generator.prompts.tokenizer(rendering.prompt, add_special_tokens=False).input_ids
        )
    assert encoder.end_token_id in generator.prompts.stop_ids


def test_a_greedy_answer_is_that_of_transformers(stories):
    causal_lm, _ = stories
    generator = generator_of(stories, batch_size=4)
    prompts = asked(6)
    for prompt, answer in zip(prompts, answers(generator, prompts), strict=True):
        text = generator.prompts.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.turns[0].content}], tokenize=False, add_generation_prompt=True
        )
        batch = generator.prompts.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        out = causal_lm.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=generator.prompts.stop_ids,
        )
        new = out[0, batch.input_ids.shape[1] :]
        assert answer.text == generator.prompts.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert answer.text
        assert answer.num_dropped_turns == 0


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_batch_and_order_change_no_answer(stories, temperature):
    prompts = asked(9, temperature=temperature)
    alone = answers(generator_of(stories, batch_size=1), prompts)
    reversed_ = answers(generator_of(stories, batch_size=4), prompts[::-1])[::-1]
    assert reversed_ == alone
    assert len({answer.text for answer in alone}) > 6


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_call_that_was_killed_ends_with_the_same_answers_when_repeated(stories, temperature, tmp_path):
    prompts = asked(9, temperature=temperature)

    class Dies(HFGenerator):
        def generate(self, asked, tell=None):
            for count, found in enumerate(super().generate(asked)):
                if count == 5:
                    raise KeyboardInterrupt
                yield found

    def run(generator, folder):
        return answer_all(prompts, generator, folder, title="test", show_progress=False)

    dies = Dies(ModelPool.holding(*stories), identity="stories", template_name="chatml", seed=0, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        run(dies, tmp_path)
    [journal] = tmp_path.glob("*.jsonl")
    assert len(journal.read_text().splitlines()) == 5
    assert run(generator_of(stories, batch_size=3), tmp_path) == run(generator_of(stories), tmp_path / "whole")
    assert len(journal.read_text().splitlines()) == 9


def test_seed_and_round_change_what_is_drawn_and_nothing_greedy(stories):
    first = generator_of(stories)
    drawn = answers(first, asked(5, temperature=0.7))
    for other, round_ in ((generator_of(stories, seed=1), 1), (first, 2)):
        assert answers(other, asked(5, round=round_)) == answers(first, asked(5))
        others = answers(other, asked(5, temperature=0.7, round=round_))
        assert all(a.text != b.text for a, b in zip(drawn, others, strict=True))
    assert first.settings != generator_of(stories, seed=1).settings
    assert json.loads(json.dumps(first.settings)) == first.settings


def test_special_tokens_in_a_users_text_stay_text(stories):
    generator = generator_of(stories, template="alpaca")
    text = "Say </s> and <s>, then stop.</s>"
    ids = generator.prompts.encoder.prompt_ids([Message("user", text)])
    specials = {generator.prompts.tokenizer.bos_token_id, generator.prompts.tokenizer.eos_token_id}
    plain = generator.prompts.encoder.prompt_ids([Message("user", "Say it.")])
    assert [i for i in ids if i in specials] == [i for i in plain if i in specials]
    assert text in generator.prompts.tokenizer.decode(ids)
    # an answer of an earlier turn that holds them does no more
    turns = [Message("user", "Hello."), Message("assistant", "</s><s>"), Message("user", "Go on.")]
    usual = [*turns[:1], Message("assistant", "Hi."), *turns[2:]]
    ids, plain = (generator_of(stories).prompts.encoder.prompt_ids(t) for t in (turns, usual))
    assert [i for i in ids if i in specials] == [i for i in plain if i in specials]


def test_a_model_that_never_stops_is_cut_and_counted(stories):
    generator = generator_of(stories)
    generator.prompts.stop_ids = [511]  # a token that it does not write
    found = answers(generator, asked(3, max_new_tokens=40))
    assert [(answer.finish, answer.num_tokens) for answer in found] == [("length", 40)] * 3
    assert share_cut(found) == 1.0


def test_an_answer_that_ends_is_not_counted_as_cut(stories):
    generator = generator_of(stories)
    [whole] = answers(generator, asked(1))
    ids = generator.prompts.tokenizer.encode(whole.text, add_special_tokens=False)
    generator.prompts.stop_ids = sorted({*generator.prompts.stop_ids, ids[-1]})
    [cut] = answers(generator, asked(1))
    assert cut.finish == "stop"
    assert cut.num_tokens < whole.num_tokens
    assert whole.text.startswith(cut.text)


def long_conversation(num_words: int, last: str = "What now?") -> Prompt:
    turns = (
        Message("system", "Be kind."),
        Message("user", "red " * num_words),
        Message("assistant", "blue " * num_words),
        Message("user", "green " * num_words),
        Message("assistant", "gold " * num_words),
        Message("user", last),
    )
    return Prompt("long", 3, 1, turns, 0.0, 1024)


def test_the_oldest_turns_go_where_a_conversation_does_not_fit(stories):
    generator = generator_of(stories)
    short = Prompt("long", 3, 1, (long_conversation(40).turns[0], *long_conversation(40).turns[3:]), 0.0, 1024)
    [answer] = answers(generator, [long_conversation(40)])
    assert answer.num_dropped_turns == 2
    [expected] = answers(generator, [short])
    assert answer.prompt_sha256 == expected.prompt_sha256
    assert answer.text == expected.text
    assert expected.num_dropped_turns == 0


def test_no_prompt_with_its_answer_is_longer_than_the_model(stories):
    causal_lm, _ = stories
    lengths = []
    handle = causal_lm.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    generator = generator_of(stories)
    generator.prompts.stop_ids = [511]
    prompts = [long_conversation(n, "why " * m) for n, m in ((2, 1), (40, 1), (30, 100), (30, 150))]
    found = answers(generator, [p._replace(id=f"long {k}") for k, p in enumerate(prompts)])
    handle.remove()
    assert max(lengths) < 512
    assert [answer.num_tokens for answer in found] == [320, 160, 128, 2]  # of 512, steps of 32
    assert [answer.num_dropped_turns for answer in found] == [0, 2, 4, 4]


def test_a_question_longer_than_the_model_has_an_empty_answer_and_is_counted(stories):
    prompts = [*asked(1), long_conversation(2, "why " * 600), *asked(1)]
    found = answers(generator_of(stories), prompts)
    assert found[1].text == ""
    assert found[1].finish == "length"
    assert found[1].num_tokens == 0
    assert found[1].num_dropped_turns == 4
    assert found[0] == found[2]


def test_a_model_of_learned_positions_is_not_asked_beyond_them(shared):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = load_tokenizer(str(shared / "tokenizers" / "gpt2"), None, None)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=128)
    pool = ModelPool.holding(GPT2LMHeadModel(config).eval(), tokenizer)
    generator = HFGenerator(pool, identity="gpt2", template_name="alpaca", seed=0, batch_size=8)
    generator.prompts.stop_ids = [1]
    prompts = [Prompt(f"{k}", 1, 1, (Message("user", "word " * k),), 1.0, 100) for k in (0, 50, 80, 100)]
    found = answers(generator, prompts)
    alone = [answers(generator, [prompt])[0] for prompt in prompts]
    assert found == alone
    assert found[0].num_tokens > found[1].num_tokens > found[-1].num_tokens == 0


def test_a_model_without_a_chat_template_is_refused_and_the_setting_named(stories):
    causal_lm, tokenizer = stories
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(
        InputError, match=r"generate\.template=null: the tokenizer has no chat template, expected alpaca"
    ):
        generator_of((causal_lm, bare), template=None)
    with pytest.raises(InputError, match=r"generate\.template=nosuch: no such template, expected alpaca"):
        generator_of((causal_lm, bare), template="nosuch")


def test_a_given_template_leaves_the_tokenizer_of_others_as_it_is(stories):
    before = stories[1].chat_template
    generator_of(stories, template="zephyr")
    assert stories[1].chat_template == before


def test_the_end_of_a_turn_is_a_stop_also_where_it_is_not_the_end_token(tiny_tokenizer):
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    causal_lm = tiny_llama(
        tiny_tokenizer, hidden_size=32, num_layers=1, num_heads=2, max_position_embeddings=128, seed=0
    )
    generator = generator_of((causal_lm, tiny_tokenizer), template="gemma")
    end = tiny_tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert generator.prompts.stop_ids == sorted({end, tiny_tokenizer.eos_token_id})


def test_a_template_that_cannot_be_trained_with_can_be_answered_with(stories):
    causal_lm, tokenizer = stories
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {% if m.role == 'assistant' %}({{ m.content | length }}) {% endif %}"
        "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    with pytest.raises(InputError, match="cannot be trained with"):
        Encoder(thinking, 512, "error")
    [answer] = answers(generator_of((causal_lm, thinking), template=None), asked(1))
    assert answer.text


THINKING = (
    "{% for m in messages %}<s>{{ m.role }}: {% if m.role == 'assistant' %}(thought) {% endif %}{{ m.content }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def test_a_named_template_gives_the_prompt_of_training(stories, tmp_path):
    (tmp_path / "thinking.jinja").write_text(THINKING)
    _, tokenizer = stories
    trained = copy.deepcopy(tokenizer)
    set_template(trained, THINKING)
    encoder = Encoder(trained, 512, "error")
    messages = [Message("user", "Hello.")]
    generator = generator_of(stories, template=str(tmp_path / "thinking.jinja"))
    assert generator.prompts.encoder.prompt_ids(messages) == encoder.prompt_ids(messages)
    assert generator.prompts.tokenizer.decode(encoder.prompt_ids(messages)).endswith("assistant: (thought)")


def test_a_foreign_model_is_asked_with_its_own_generation_prompt(stories):
    """Only training aligns a model's own template: a model that thinks may think."""
    causal_lm, tokenizer = stories
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = THINKING
    generator = generator_of((causal_lm, thinking), template=None)
    ids = generator.prompts.encoder.prompt_ids([Message("user", "Hello.")])
    assert generator.prompts.tokenizer.decode(ids).endswith("assistant: ")


def test_a_template_with_another_end_of_turn_keeps_the_models_end_token(stories):
    causal_lm, tokenizer = stories
    chat = copy.deepcopy(tokenizer)
    chat.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    resized = copy.deepcopy(causal_lm)
    resized.resize_token_embeddings(len(chat))
    resized.generation_config.eos_token_id = None
    generator = generator_of((resized, chat), template="chatml")
    assert generator.prompts.stop_ids == [tokenizer.eos_token_id, chat.convert_tokens_to_ids("<|im_end|>")]
    assert chat.eos_token == "</s>", "the caller's tokenizer stays as it is"


def test_prompts_with_tokens_that_the_model_cannot_embed_are_refused(stories):
    causal_lm, tokenizer = stories
    larger = copy.deepcopy(tokenizer)
    larger.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|user|>"]})
    larger.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    generator = generator_of((causal_lm, larger), template=None)
    assert generator.prompts.stop_ids == [2], "an end token without an embedding is never written"
    with pytest.raises(
        InputError,
        match=r"^the model that answers: the tokenizer has 514 tokens and the model 512 embeddings; 2 of 2 "
        r"prompts hold tokens without an embedding: '<\|im_end\|>' \(512\), '<\|user\|>' \(513\)\. Expected",
    ):
        answers(generator, asked(2))
    endless = copy.deepcopy(causal_lm)
    endless.generation_config.eos_token_id = None
    larger.eos_token = "<|im_end|>"
    with pytest.raises(InputError, match=r"cannot stop: .* '<\|im_end\|>' \(512\)"):
        generator_of((endless, larger), template=None)


def test_a_conversation_that_the_template_refuses_is_an_error(stories, tmp_path):
    template = tmp_path / "strict.jinja"
    template.write_text("{{ raise_exception('no system role here') }}")
    with pytest.raises(InputError, match="the chat template cannot be rendered: no system role here"):
        answers(generator_of(stories, template=str(template)), asked(1))
