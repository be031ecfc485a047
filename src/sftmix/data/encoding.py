"""Encode examples as token ids: the border between prompt and response, the end token, the maximum length.

Prompt and response are tokenized as one text, so that SentencePiece models put no blank before the response. They are
tokenized separately only if the ids of the text do not begin with the ids of the prompt, which generation sees: if a
token straddles the border, or if the first characters of the response change an earlier token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

from sftmix.data import census as reasons
from sftmix.data.census import Census
from sftmix.data.example import Example, Message
from sftmix.data.generation_prompt import align_generation_prompt, end_of_turn, notes_of, render
from sftmix.data.prompts import PromptEncoder, hide, hide_contents, without_oldest_turns
from sftmix.errors import InputError
from sftmix.terminal import one_line

STRADDLED = "the response would change the last tokens of the prompt (tokenized separately)"
SPECIAL_TEXT = "text with the string of a special token (kept as text)"
THINKS = "response with a think block that the template does not render after its generation prompt"
TEMPLATE_DROPS = "the template leaves out or alters part of the prompt"

KEY = "data.template=tokenizer"
CHUNK = 1000  # examples that are tokenized in one call
SHOWN = 200  # characters of an error of a template
ENCODING = 5  # increased whenever the same example gets other ids, so that cached ids are not used


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Token ids of prompt and response.

    Attributes:
        input_ids: Ids of prompt and response. The last id is the end token, unless the response was truncated.
        num_prompt_tokens: Number of ids before the response.
    """

    example_id: str
    input_ids: tuple[int, ...]
    num_prompt_tokens: int

    @property
    def num_response_tokens(self) -> int:
        """Number of response tokens, including the end token."""
        return len(self.input_ids) - self.num_prompt_tokens


class FittedExample(NamedTuple):
    """An encoded example that fits into the maximum length.

    Attributes:
        example_index: Index of the example among those that were given.
        is_whole: Whether its row was kept without change.
        shortened: Why the example was shortened; empty if it was not.
    """

    example_index: int
    encoded: EncodedExample
    is_whole: bool
    shortened: str


@dataclass(frozen=True, slots=True)
class Rendering:
    """A dialogue as one text: the prompt as generation sees it, then the response up to its end token."""

    prompt: str
    response: str


class Encoder(PromptEncoder):
    """Renders and tokenizes examples with one tokenizer and its chat template.

    Args:
        tokenizer: Fast tokenizer with the chat template to train with. The template is changed if its generation
            prompt is not the beginning of its finished turns (`align_generation_prompt`).
        max_seq_len: Maximum number of tokens of prompt and response together.
        overlong: What to do with an example that is too long after its oldest turns were dropped: drop, truncate, or
            error.

    Attributes:
        end_token_id: Special token that ends a response. It carries loss.

    Raises:
        InputError: If the tokenizer has no template, or one that cannot be rendered or used for training.
    """

    def __init__(self, tokenizer: Any, max_seq_len: int, overlong: str) -> None:
        if tokenizer.chat_template:
            align_generation_prompt(tokenizer, KEY)
        super().__init__(tokenizer, KEY)
        self.max_seq_len = max_seq_len
        self.overlong = overlong
        self._refusals: dict[str, str] = {}  # errors of the template, by the ids of the examples of a chunk
        self._end = end_of_turn(tokenizer)  # None if the template puts no token after a turn
        end = tokenizer.eos_token if self._end is None else self._end.token
        self.end_token_id: int = tokenizer.convert_tokens_to_ids(end)

    @property
    def notes(self) -> list[str]:
        """What was changed in the chat template for training, one sentence for each change."""
        return notes_of(self.tokenizer.chat_template)

    def render(self, messages: Sequence[Message], response: str) -> Rendering | None:
        """Return the text of prompt and response, or None if the template alters the response.

        Raises:
            InputError: If the template cannot be rendered.
        """
        prompt = self._rendered_prompt(messages)
        answered = [*(message.as_dict() for message in messages), {"role": "assistant", "content": response}]
        text = render(self.tokenizer, answered)
        after = text[len(prompt) :]

        def skip_blanks(start: int) -> int:
            return len(after) - len(after[start:].lstrip())

        starts = (0, skip_blanks(0))  # some templates put white space between header and content
        stops = [k + len(c) for c in (response, response.strip()) for k in starts if after.startswith(c, k)]
        if not text.startswith(prompt) or not stops:
            return None
        if self._end is None:
            return Rendering(prompt, after[: stops[0]] + self.tokenizer.eos_token)
        stop = skip_blanks(stops[0])
        if self._end.text and after.startswith(self._end.text, stop):
            stop = skip_blanks(stop + len(self._end.text))
        end = next((token for token in self.special if after.startswith(token, stop)), None)
        return None if end is None else Rendering(prompt, after[: stop + len(end)])

    def fit(self, examples: Sequence[Example], census: Census) -> list[FittedExample]:
        """Return the token ids of the examples, without dropped ones, and add to the data report what happened to each.

        Args:
            examples: Examples of complete rows. The examples of a row follow each other.

        Raises:
            InputError: If an example is too long and `overlong` is error.
        """
        ends: list[tuple[EncodedExample | None, str]] = []
        for start in range(0, len(examples), CHUNK):
            chunk = examples[start : start + CHUNK]
            self._refusals.clear()
            for example, ids in zip(chunk, self._encode_chunk(chunk, census), strict=True):
                ends.append(self._fit(example, ids, census))
        kept: list[FittedExample] = []
        for _, row in groupby(range(len(examples)), key=lambda i: (examples[i].source, examples[i].row)):
            members = list(row)
            is_whole = all(examples[i].is_whole and ends[i][0] is not None and not ends[i][1] for i in members)
            left = [FittedExample(i, e, is_whole, ends[i][1]) for i in members if (e := ends[i][0]) is not None]
            census.rows["kept" if is_whole else "shortened" if left else "dropped"] += 1
            kept += left
        return kept

    def _encode_chunk(
        self, examples: Sequence[Example], census: Census
    ) -> Iterator[tuple[list[int], list[int]] | None]:
        """Yield prompt ids and response ids of each example. Plain examples are tokenized in one call."""
        renderings: list[Rendering | None] = []
        for example in examples:
            try:
                rendering = self.render(example.messages, example.response)
            except InputError as error:
                rendering = None
                self._refusals[example.id] = one_line(str(error).partition(": ")[2])[:SHOWN]
            if rendering is not None and not _holds_all(rendering.prompt, example.messages):
                census.noted[TEMPLATE_DROPS].append(example.place)
            renderings.append(rendering)
        guarded = [self._holds_special_text(e.messages, e.response) for e in examples]
        plain = [r for r, guard in zip(renderings, guarded, strict=True) if r is not None and not guard]
        prompts = iter(self._ids_of([r.prompt for r in plain]) if plain else [])
        texts = iter(self._ids_of([r.prompt + r.response for r in plain]) if plain else [])
        for example, rendering, guard in zip(examples, renderings, guarded, strict=True):
            if rendering is None:
                yield None
            elif guard:
                census.noted[SPECIAL_TEXT].append(example.place)
                yield self._encode_guarded(example.messages, example.response)
            else:
                prompt, ids = next(prompts), next(texts)
                response = ids[len(prompt) :]
                if ids[: len(prompt)] != prompt:
                    census.noted[STRADDLED].append(example.place)
                    response = self._ids_inside(rendering.response)
                yield prompt, response

    def _encode_guarded(self, messages: Sequence[Message], response: str) -> tuple[list[int], list[int]] | None:
        """Encode an example that holds the string of a special token. Such texts are tokenized as plain text.

        The prompt is that of `prompt_ids`: if only the response holds the string, the messages are rendered as usual.
        """
        contents: list[str] = []
        shown = hide_contents(messages, contents) if self._holds_special_text(messages) else messages
        try:
            prompt = self.prompt_ids(messages)
            rendering = self.render(shown, hide(response, contents) or "")
        except InputError:  # a template may refuse a placeholder although it accepts the text
            return None
        if rendering is None:
            return None
        return prompt, self._ids_of_pieces(rendering.response, contents, inside=True)

    def _fit(
        self, example: Example, ids: tuple[list[int], list[int]] | None, census: Census
    ) -> tuple[EncodedExample | None, str]:
        """Return an example that fits, or None if it is dropped, and the reason why it was shortened."""
        messages = example.messages
        while ids is not None and len(ids[0]) + len(ids[1]) > self.max_seq_len:
            if (fewer := without_oldest_turns(messages)) is None:
                break
            messages = fewer
            ids = next(self._encode_chunk([replace(example, messages=messages)], Census()))
        if ids is None:
            words = self._refusals.get(example.id)
            reason = THINKS if words is None and "</think>" in example.response else reasons.REFUSED
            census.dropped[reason].append(f"{example.place}: {words}" if words else example.place)
            return None, ""
        prompt, response = ids
        why = "" if messages is example.messages else reasons.OLDEST_TURNS
        room = self.max_seq_len - len(prompt)
        if len(response) > room:
            if self.overlong == "error":
                raise InputError(
                    f"{example.place}: {len(prompt)} prompt and {len(response)} response tokens, "
                    f"expected at most data.max_seq_len={self.max_seq_len} together (data.overlong=error)"
                )
            if room <= 0 or self.overlong == "drop":
                census.dropped[reasons.NO_ROOM if room > 0 else reasons.NO_ROOM_FOR_PROMPT].append(example.place)
                return None, ""
            why, response = reasons.TRUNCATED, response[:room]
        if why:
            census.shortened[why].append(example.place)
        else:
            census.kept += 1
        return EncodedExample(example.id, (*prompt, *response), len(prompt)), why


def _holds_all(prompt: str, messages: Sequence[Message]) -> bool:
    """Return whether a rendered prompt has the texts of all turns in their order, and system messages anywhere.

    Some templates move system messages: their text has to appear as often as in all messages together.
    """
    texts = [
        (m.role, text.strip())
        for m in messages
        for text in ((m.instruction, m.input) if m.instruction else (m.content,))
        if text
    ]
    at = 0
    for role, text in texts:
        if role != "system":
            at = prompt.find(text, at)
            if at < 0:
                return False
            at += len(text)
    system = {text for role, text in texts if role == "system" and text}
    return all(prompt.count(rule) >= sum(text.count(rule) for _, text in texts) for rule in system)
