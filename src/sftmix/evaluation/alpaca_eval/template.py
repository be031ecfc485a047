"""What a judge is asked: a template with AlpacaEval's marks, taken apart before any answer is put into it."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from sftmix.errors import InputError

START, END = "<|im_start|>", "<|im_end|>"
PLACES = ("{instruction}", "{output_1}", "{output_2}")
_PLACE = re.compile("|".join(map(re.escape, PLACES)))

DEMO_TEMPLATE = f"""\
{START}system
You compare two answers to a request.
{END}
{START}user
Request: {{instruction}}

Answer m: {{output_1}}

Answer M: {{output_2}}

Which answer is better? Reply by its letter alone: m or M.
{END}"""


class Template(NamedTuple):
    """A prompt template.

    Attributes:
        messages: role and text with places to fill, of each message.
        sha256: of the file.
    """

    messages: tuple[tuple[str, str], ...]
    sha256: str

    def filled(self, instruction: str, first: str, second: str) -> tuple[dict[str, str], ...]:
        """The messages with an instruction and two answers. What these hold, marks and places too, stays text."""
        texts = dict(zip(PLACES, (instruction, first, second), strict=True))
        return tuple(
            {"role": role, "content": _PLACE.sub(lambda found: texts[found.group()], text)}
            for role, text in self.messages
        )


def read_template(file: Path) -> Template:
    """The template of a file.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as text ({error})") from None
    return parse_template(text, str(file))


def parse_template(text: str, where: str) -> Template:
    """A template's messages.

    Args:
        text: messages between marks, the role on the mark's line.
        where: it is from, for messages.

    Raises:
        InputError: a mark is lacking, a role is unknown, or a place is not there once.
    """
    before, *parts = text.strip().split(START)
    messages = []
    for part in parts:
        role, _, rest = part.partition("\n")
        content, mark, after = rest.partition(END)
        if role.strip() not in ("system", "user", "assistant") or not mark or after.strip():
            raise InputError(f"{where}: expected messages, each from {START}system or {START}user to {END}")
        messages.append((role.strip(), content.strip()))
    if before or not messages:
        raise InputError(f"{where}: expected to begin with {START}system or {START}user")
    for place in PLACES:
        if (times := sum(content.count(place) for _, content in messages)) != 1:
            raise InputError(f"{where}: has {place} {times} times, expected it once")
    return Template(tuple(messages), hashlib.sha256(text.encode()).hexdigest())
