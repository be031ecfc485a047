"""From examples to token ids: the border between prompt and response, the end token, the room.

Prompt and response are rendered and tokenized as one text, and the response begins at the first token whose characters
begin at or after the border: that is what generation will see, where tokenizing the two apart gives SentencePiece
models a blank before every answer. Only where a token straddles the border are the sides tokenized apart.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2
from tqdm import tqdm

from sftmix.data import census as reasons
from sftmix.data.census import Census
from sftmix.data.example import Example, Message
from sftmix.errors import InputError

STRADDLED = "a token straddles the border (sides tokenized apart)"
SPECIAL_TEXT = "text holds a special token's string (kept as text)"

CHUNK = 1000
ENCODING = 1  # raised whenever the same example gets other ids: cached ones are not taken then
SENTINEL = re.compile("\ue000(\\d+)\ue001")
ANCHORS = ("\n", ":", ".", "a")


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Token ids of prompt and response.

    Attributes:
        example: what was encoded.
        input_ids: prompt and response; the response's end token is the last unless it was truncated.
        num_prompt_tokens: ids before the response.
    """

    example: Example
    input_ids: tuple[int, ...]
    num_prompt_tokens: int

    @property
    def num_response_tokens(self) -> int:
        """Tokens that carry loss."""
        return len(self.input_ids) - self.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as one text: the prompt as generation sees it, then the response up to its end token."""

    prompt: str
    response: str


class Encoder:
    """Renders and tokenizes examples with one tokenizer and its chat template.

    Args:
        tokenizer: a fast tokenizer with the chat template to train with.
        max_seq_len: tokens of prompt and response together.
        overlong: what becomes of an example that is longer once its oldest turns are dropped: drop, truncate or error.

    Attributes:
        end_token_id: the special token that ends a response; it carries loss.

    Raises:
        InputError: the tokenizer has no template, or one that cannot be rendered or used for training.
    """

    def __init__(self, tokenizer: Any, max_seq_len: int, overlong: str) -> None:
        """Check tokenizer and template on a small conversation."""
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len
        self.overlong = overlong
        if not tokenizer.is_fast:
            raise InputError(f"{type(tokenizer).__name__} is no fast tokenizer: character offsets are needed")
        if not tokenizer.chat_template:
            raise InputError(
                "data.template=tokenizer: the tokenizer has no chat template, expected alpaca, chatml or a .jinja file"
            )
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        self.special = sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, self.special))) if self.special else None
        probe = self.render([Message("user", "Say A.", "Say A.", "")], "A")
        if probe is None:
            raise InputError(
                "the chat template cannot be trained with: what it renders with the response does not continue what it "
                "renders for generation, or no special token ends the response"
            )
        self.end_token_id = self._ids(probe.response)[-1]

    def render(self, messages: Sequence[Message], response: str) -> Rendering | None:
        """The text of prompt and response, or None where the template alters the response.

        Raises:
            InputError: the template cannot be rendered.
        """
        turns = [message.as_dict() for message in messages]
        try:
            prompt = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            answered = [*turns, {"role": "assistant", "content": response}]
            text = self.tokenizer.apply_chat_template(answered, tokenize=False)
        except Exception as error:  # a template is a program: anything can go wrong in it
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise InputError(f"the chat template cannot be rendered{line}: {' '.join(str(error).split())}") from None
        after = text[len(prompt) :]
        content = next((c for c in (response, response.strip()) if after.startswith(c)), None)
        if not text.startswith(prompt) or content is None:
            return None
        rest = after[len(content) :]
        space = len(rest) - len(rest.lstrip())
        end = next((token for token in self.special if rest[space:].startswith(token)), None)
        return None if end is None else Rendering(prompt, after[: len(content) + space + len(end)])

    def encode(self, examples: Sequence[Example], census: Census, show_progress: bool = True) -> list[EncodedExample]:
        """The examples as token ids, without those that find no room; the census takes down each one's end.

        Raises:
            InputError: an example is too long and `overlong` is error.
        """
        encoded = []
        hide = not show_progress or len(examples) < 5 * CHUNK
        with tqdm(total=len(examples), desc="tokenizing", unit="example", disable=hide, leave=False) as bar:
            for start in range(0, len(examples), CHUNK):
                chunk = examples[start : start + CHUNK]
                for example, ids in zip(chunk, self._encode_chunk(chunk, census), strict=True):
                    fitted = self._fit(example, ids, census)
                    if fitted is not None:
                        encoded.append(fitted)
                bar.update(len(chunk))
        return encoded

    def _encode_chunk(
        self, examples: Sequence[Example], census: Census
    ) -> Iterator[tuple[list[int], list[int]] | None]:
        """Prompt ids and response ids of each example; the plain ones tokenized in one call."""
        renderings = [self._render_or_none(e) for e in examples]
        guarded = [self._holds_special_text(e.messages, e.response) for e in examples]
        plain = [r for r, g in zip(renderings, guarded, strict=True) if r is not None and not g]
        whole = iter(self._encode_whole(plain, census))
        for example, rendering, guard in zip(examples, renderings, guarded, strict=True):
            if rendering is None:
                yield None
            elif guard:
                census.noted[SPECIAL_TEXT] += 1
                yield self._encode_guarded(example.messages, example.response)
            else:
                yield next(whole)

    def _render_or_none(self, example: Example) -> Rendering | None:
        """The rendering, or None where the template refuses this example (a role it does not know) or alters it."""
        try:
            return self.render(example.messages, example.response)
        except InputError:
            return None

    def _encode_whole(self, renderings: Sequence[Rendering], census: Census) -> Iterator[tuple[list[int], list[int]]]:
        """Tokenize prompt and response as one text and cut at the border."""
        if not renderings:
            return
        texts = [r.prompt + r.response for r in renderings]
        batch = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for rendering, ids, offsets in zip(renderings, batch["input_ids"], batch["offset_mapping"], strict=True):
            border = len(rendering.prompt)
            first = next(k for k, (begin, _) in enumerate(offsets) if begin >= border)
            if first and offsets[first - 1][1] > border:
                census.noted[STRADDLED] += 1
                yield self._ids(rendering.prompt), self._ids_inside(rendering.response)
            else:
                yield ids[:first], ids[first:]

    def _encode_guarded(self, messages: Sequence[Message], response: str) -> tuple[list[int], list[int]] | None:
        """Render with sentinels in the place of all contents, and tokenize those as plain text."""
        contents: list[str] = []

        def guard(text: str | None) -> str | None:
            if not text:
                return text
            contents.append(text)
            return f"\ue000{len(contents) - 1}\ue001"

        hidden = [Message(m.role, guard(m.content) or "", guard(m.instruction), guard(m.input)) for m in messages]
        rendering = self.render(hidden, guard(response) or "")
        if rendering is None:
            return None
        prompt = self._ids_of_pieces(rendering.prompt, contents)
        return prompt, self._ids_of_pieces(rendering.response, contents, inside=True)

    def _ids_of_pieces(self, text: str, contents: list[str], inside: bool = False) -> list[int]:
        ids: list[int] = []
        for k, piece in enumerate(SENTINEL.split(text)):
            if k % 2:
                ids += self._ids_inside(contents[int(piece)], split_special_tokens=True)
            elif piece:
                ids += self._ids_inside(piece) if ids or inside else self._ids(piece)
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _ids_inside(self, text: str, **options: bool) -> list[int]:
        """Token ids of a text as it stands inside another: without the blank that SentencePiece puts at a start."""
        for anchor in ANCHORS:
            batch = self.tokenizer(
                anchor + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False, **options
            )
            offsets = batch["offset_mapping"]
            first = next((k for k, (begin, _) in enumerate(offsets) if begin >= len(anchor)), len(offsets))
            if first and offsets[first - 1][1] <= len(anchor):
                return list(batch["input_ids"][first:])
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"])

    def _holds_special_text(self, messages: Sequence[Message], response: str) -> bool:
        if self._special_text is None:
            return False
        return any(self._special_text.search(text) for text in (response, *(m.content for m in messages)))

    def _fit(self, example: Example, ids: tuple[list[int], list[int]] | None, census: Census) -> EncodedExample | None:
        """Give an example its last shape: as it is, shortened, or dropped."""
        place = f"row {example.row}"
        if ids is None:
            census.dropped[reasons.REFUSED].append(place)
            return None
        prompt, response = ids
        messages = example.messages
        while len(prompt) + len(response) > self.max_seq_len and (fewer := _without_oldest_turns(messages)):
            messages = fewer
            again = next(self._encode_chunk([replace(example, messages=messages)], Census()))
            assert again is not None
            prompt, response = again
        if len(prompt) + len(response) > self.max_seq_len:
            if self.overlong == "error":
                raise InputError(
                    f"{example.source}, row {example.row}: {len(prompt)} prompt and {len(response)} response tokens, "
                    f"expected at most data.max_seq_len={self.max_seq_len} together (data.overlong=error)"
                )
            if len(prompt) >= self.max_seq_len:
                census.dropped[reasons.NO_ROOM_FOR_PROMPT].append(place)
                return None
            if self.overlong == "drop":
                census.dropped[reasons.NO_ROOM].append(place)
                return None
            census.shortened[reasons.TRUNCATED].append(place)
            response = response[: self.max_seq_len - len(prompt)]
        elif messages is not example.messages:
            census.shortened[reasons.OLDEST_TURNS].append(place)
        else:
            census.kept += 1
        return EncodedExample(example, (*prompt, *response), len(prompt))


def _without_oldest_turns(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """The messages without the oldest user turn and its answer, system messages kept; None where one turn is left."""
    system = [m for m in messages if m.role == "system"]
    turns = [m for m in messages if m.role != "system"]
    second = next((i for i, m in enumerate(turns) if i > 0 and m.role == "user"), None)
    return None if second is None else (*system, *turns[second:])
