"""Encode a conversation as the token ids that a model sees before it answers, in training and in generation."""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sftmix.data.example import Message
from sftmix.data.generation_prompt import end_of_turn, render
from sftmix.data.templates import choices
from sftmix.errors import InputError

PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")
ANCHORS = ("\n", ":", ".", "a")


class PromptEncoder:
    """Renders and tokenizes prompts with one tokenizer and its chat template.

    Attributes:
        special: Strings of the special tokens, the longest first.

    Raises:
        InputError: If the tokenizer has no template, or is not a fast one.
    """

    def __init__(self, tokenizer: Any, key: str) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.is_fast:
            raise InputError(
                f"{type(tokenizer).__name__} is not a fast tokenizer, expected one that gives character offsets"
            )
        if not tokenizer.chat_template:
            raise InputError(f"{key}: the tokenizer has no chat template, expected {choices()}")
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        self.special = sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, self.special))) if self.special else None

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation up to where the answer begins, in training and in generation.

        A special token's string in a message stays text. Only the messages decide how they are tokenized, so the prompt
        does not depend on the response.

        Raises:
            InputError: If the template cannot be rendered.
        """
        if not self._holds_special_text(messages):
            return self._ids_of([self._rendered_prompt(messages)])[0]
        contents: list[str] = []
        return self._ids_of_pieces(self._rendered_prompt(hide_contents(messages, contents)), contents)

    def end_of_turn_id(self) -> int | None:
        """Return the id of the token that the template puts after an answer, or None if there is none."""
        with suppress(InputError):
            if end := end_of_turn(self.tokenizer):
                return int(self.tokenizer.convert_tokens_to_ids(end.token))
        return None

    def _rendered_prompt(self, messages: Sequence[Message]) -> str:
        return render(self.tokenizer, [message.as_dict() for message in messages], add_generation_prompt=True)

    def _ids_of_pieces(self, text: str, contents: list[str], inside: bool = False) -> list[int]:
        ids: list[int] = []
        for k, piece in enumerate(PLACEHOLDER.split(text)):
            if k % 2:
                ids += self._ids_inside(contents[int(piece)], split_special_tokens=True)
            elif piece:
                ids += self._ids_inside(piece) if ids or inside else self._ids_of([piece])[0]
        return ids

    def _ids_of(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]

    def _ids_inside(self, text: str, **options: bool) -> list[int]:
        """Return the ids of a text inside a longer text: SentencePiece puts a blank at a start."""
        for anchor in ANCHORS:
            batch = self.tokenizer(
                anchor + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False, **options
            )
            offsets = batch["offset_mapping"]
            first = next((k for k, (begin, _) in enumerate(offsets) if begin >= len(anchor)), len(offsets))
            if first and offsets[first - 1][1] <= len(anchor):
                return list(batch["input_ids"][first:])
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"])

    def _holds_special_text(self, messages: Sequence[Message], *others: str) -> bool:
        if self._special_text is None:
            return False
        return any(self._special_text.search(text) for text in (*others, *(m.content for m in messages)))


def hide_contents(messages: Sequence[Message], contents: list[str]) -> list[Message]:
    """Replace each text by a placeholder. The texts are appended to `contents`."""
    return [
        Message(m.role, hide(m.content, contents) or "", hide(m.instruction, contents), hide(m.input, contents))
        for m in messages
    ]


def hide(text: str | None, contents: list[str]) -> str | None:
    """Return a placeholder for a text. Outer blanks stay outside, where a template can remove them."""
    content = text and text.strip()
    if not text or not content:
        return text
    contents.append(content)
    before, _, after = text.partition(content)
    return f"{before}\ue000{len(contents) - 1}\ue001{after}"


def without_oldest_turns(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """Return the messages without the oldest user turn and its answer, or None if only one user turn is left.

    System messages keep their position among the remaining turns.
    """
    turns = [i for i, m in enumerate(messages) if m.role != "system"]
    second = next((i for i in turns[1:] if messages[i].role == "user"), None)
    return None if second is None else tuple(m for i, m in enumerate(messages) if i >= second or m.role == "system")
