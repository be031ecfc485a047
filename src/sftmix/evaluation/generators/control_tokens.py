"""Tokens that steer a chat, as text in an answer: the usual sign of a wrong template or of a model that runs on."""

import re

# <|eot_id|>, <|im_start|> and their like; Mistral's and Llama 2's; Gemma's; the end token of many tokenizers
_SPECIAL = re.compile(r"<\|[^\s<>|]{1,40}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:eos|bos)>|</s>")


def holds_special(answer: str) -> bool:
    """Whether an answer has the text of a chat's control token in it."""
    return _SPECIAL.search(answer) is not None
