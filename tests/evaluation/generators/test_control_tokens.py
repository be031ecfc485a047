"""Control tokens of chats in an answer's text."""

import pytest

from sftmix.evaluation.generators.control_tokens import holds_special


@pytest.mark.parametrize(
    "token",
    [
        "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<|start_header_id|>",
        "<|assistant|>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "</s>", "<start_of_turn>", "<end_of_turn>",
    ],
)  # fmt: skip
def test_a_control_token_is_seen_wherever_it_stands(token):
    assert holds_special(f"fine{token}user\nmore")
    assert holds_special(token)


@pytest.mark.parametrize(
    "text", ["", "a < b | c > d", "<| a |>", "<|>", "[inst]", "instance [1]", "<p>s</p>", "a << b"]
)
def test_other_text_is_none(text):
    assert not holds_special(text)
