"""Chat templates as Jinja files, which become the template of the tokenizer that is exported with the model."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from sftmix.data.generation_prompt import with_note
from sftmix.errors import InputError

TOKENIZERS_OWN = "tokenizer"
END_OF_TURN = re.compile("set end_of_turn = '([^']+)'")


def shipped() -> list[str]:
    """Return the names of the templates in this package."""
    return sorted(f.name.removesuffix(".jinja") for f in files(__package__).iterdir() if f.name.endswith(".jinja"))


def choices(*others: str) -> str:
    """Return the values that a setting may have: shipped templates, others, and files."""
    return f"{', '.join((*shipped(), *others))} or the path of a .jinja file"


def template_source(name: str, key: str = "data.template") -> str | None:
    """Return the Jinja source of a shipped template or a .jinja file, or None for the tokenizer's own template.

    Raises:
        InputError: If there is no such template.
    """
    if name == TOKENIZERS_OWN:
        return None
    if name in shipped():
        return (files(__package__) / f"{name}.jinja").read_text(encoding="utf-8")
    if name.endswith(".jinja") and Path(name).is_file():
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{key}={name}: could not be read ({error})") from None
    raise InputError(f"{key}={name}: no such template, expected {choices(TOKENIZERS_OWN)}")


def set_template(tokenizer: Any, source: str | None) -> None:
    """Give the tokenizer a chat template (None keeps its own), with BOS in front if the tokenizer itself puts one.

    A chat template is rendered to text and then tokenized without special tokens, so the template must contain BOS,
    once. A template can name its family's end of turn (`set end_of_turn = '...'`). If the tokenizer has this token, it
    becomes the tokenizer's end token, so that whatever reads the exported folder stops there. Otherwise turns end
    with the tokenizer's own end token, and a note in the template says so (`generation_prompt.notes_of`).
    """
    if source is None:
        return
    if family := END_OF_TURN.search(source):
        end = family.group(1)
        if end in {token.content for token in tokenizer.added_tokens_decoder.values()}:
            tokenizer.add_special_tokens({"eos_token": end})
        else:
            source = source.replace(f"'{end}'", "eos_token", 1)
            source = with_note(source, f"turns end with {tokenizer.eos_token}, because the tokenizer has no {end}")
    tokenizer.chat_template = source
    if tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return
    try:
        begins = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except Exception:  # reported by `align_generation_prompt` or `PromptEncoder`
        return
    if not begins.startswith(tokenizer.bos_token):
        tokenizer.chat_template = "{{- bos_token -}}\n" + source
