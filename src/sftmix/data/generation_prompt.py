"""Make a chat template's generation prompt the beginning of its finished turns (DESIGN.md, section 6).

Training renders a finished dialogue, generation a prompt. Some templates put text into only one of the two: an empty
think block, a channel marker, a date. What is found is written into the template as Jinja, so the exported model's
`apply_chat_template(add_generation_prompt=True)` renders exactly the prompt of training.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from sftmix.errors import InputError

NOTE = re.compile(r"\{# sftmix: (.*?) #\}", re.DOTALL)
SHOWN = 60  # characters of an ending that a message shows

# (turns before the answer, answer). The answers begin with different letters, the first two have no history.
Probe = tuple[tuple[tuple[str, str], ...], str]
PROBES: tuple[Probe, ...] = (
    ((("user", "Name a color."),), "Blue."),
    ((("user", "What is 2 + 3?"),), "The sum is five."),
    ((("user", "Hello."), ("assistant", "Good day."), ("user", "Are you well?")), "Yes, I am."),
    ((("system", "Be brief."), ("user", "Name a tree.")), "Oak"),
)
WITHOUT_SYSTEM = tuple(probe for probe in PROBES if probe[0][0][0] != "system")
SYSTEM_DROPPED = (
    "examples with a system message are dropped, because the template renders the message differently in a finished "
    "dialogue than for generation"
)
SWITCHES = ("enable_thinking", "thinking")  # variables of templates that turn reasoning off when they are false
DATE = (
    ("%Y", "2024"), ("%y", "24"), ("%m", "07"), ("%B", "July"), ("%b", "Jul"), ("%d", "26"), ("%-d", "26"),
    ("%e", "26"), ("%A", "Friday"), ("%a", "Fri"), ("%F", "2024-07-26"), ("%H", "00"), ("%I", "12"), ("%M", "00"),
    ("%S", "00"), ("%p", "AM"), ("%j", "208"),
)  # fmt: skip
CLOCK = "strftime_now"


class Borders(NamedTuple):
    """The end of the prompt and of the finished turn in the probe dialogues.

    Attributes:
        between: Different texts between prompt and answer.
        prompt: Prompt of one probe: the first probe whose answer does not follow the prompt at once, or the first one.
        is_continued: Whether the finished turn of that probe begins with its prompt and contains its answer.
    """

    between: tuple[str, ...]
    prompt: str
    finished: str
    answer: str
    tail: str
    is_continued: bool

    @property
    def is_aligned(self) -> bool:
        """Whether the finished turns continue the prompt, with nothing but white space before the answer."""
        return self.is_continued and not any(text.strip() for text in self.between)


class EndOfTurn(NamedTuple):
    """What a chat template puts after an answer."""

    text: str  # between answer and token, without outer white space; usually empty
    token: str  # ends the turn


def align_generation_prompt(tokenizer: Any, key: str) -> None:
    """Change the tokenizer's chat template until finished turns continue its generation prompt.

    A date (`strftime_now`) is fixed first, so that prompts do not depend on the day. Then the first of these that works
    is taken: the template as it is; `enable_thinking` (or `thinking`) set to false; the constant text between the
    generation prompt and the answer added to the prompt; the header of finished turns instead of the generation prompt.
    If none works with a system message, the same is tried without one, and the encoder drops examples that have one.
    (Templates of Mistral show the message only in a last turn of the user.) Each change is written into the template
    with a note (`notes_of`). An aligned template is not changed again.

    Raises:
        InputError: If the template cannot be rendered, or no change makes finished turns continue the prompt.
    """
    several = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else None
    if several is not None and "default" not in several:
        raise InputError(
            f"{key}: the tokenizer has {len(several)} chat templates ({', '.join(several)}) and none named default, "
            "expected one: give it as data.template=FILE.jinja"
        )

    def set_source(source: str) -> None:
        tokenizer.chat_template = source if several is None else {**several, "default": source}

    source = _with_fixed_date(several["default"] if several is not None else tokenizer.chat_template)
    found = borders(tokenizer, source)
    aligned = _aligned(tokenizer, source, PROBES)
    if aligned is None and (aligned := _aligned(tokenizer, source, WITHOUT_SYSTEM)) is not None:
        aligned = aligned if SYSTEM_DROPPED in notes_of(aligned) else with_note(aligned, SYSTEM_DROPPED)
    if aligned is None:
        raise InputError(
            f"{key}: the chat template cannot be trained with: what it renders with the response does not continue "
            f"what it renders for generation. The generation prompt ends with {_ending(found.prompt)}, the same "
            f"dialogue with the answer {found.answer!r} ends with {_ending(found.finished)}. Choose another template, "
            "such as data.template=chatml, or give a corrected one as data.template=FILE.jinja"
        )
    set_source(aligned)
    end = end_of_turn(tokenizer)
    if end is None:
        found = borders(tokenizer, None)
        if found.prompt.endswith(PROBES[0][0][-1][1]):
            raise InputError(
                f"{key}: the chat template cannot be trained with: no special token ends the response, and nothing is "
                f"between the last user turn and the response. The dialogue with the answer {found.answer!r} ends "
                f"with {_ending(found.finished)}"
            )
        note = f"responses end with {tokenizer.eos_token}, because the template has no special token after the answer"
        if note not in notes_of(aligned):
            set_source(with_note(aligned, note))
    elif not any(token.special for token in tokenizer.added_tokens_decoder.values() if token.content == end.token):
        from tokenizers import AddedToken

        # If the token is special, its string in a text stays text, and decoding can leave the token out.
        tokenizer.add_tokens([AddedToken(end.token, special=True, normalized=False)], special_tokens=True)


def notes_of(template: Any) -> list[str]:
    """Return the changes that were written into a chat template, one sentence for each."""
    source = template.get("default", "") if isinstance(template, dict) else template or ""
    return NOTE.findall(source)


def with_note(source: str, note: str, code: str = "") -> str:
    """Return a template with a note, and Jinja code that prints nothing, in front of it."""
    note = note.replace("#}", "# }").replace("\n", "\\n")
    return f"{{# sftmix: {note} #}}{code}\n{source}"  # the line break after a block is not printed (trim_blocks)


def render(tokenizer: Any, turns: Sequence[dict[str, str]], **options: Any) -> str:
    """Return a dialogue as the chat template renders it, or raise the error of the template as an InputError."""
    try:
        return tokenizer.apply_chat_template(list(turns), tokenize=False, **options)
    except Exception as error:  # a template is a program: anything can go wrong in it
        from jinja2 import TemplateSyntaxError  # not needed by a command that only checks its configuration

        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise InputError(f"the chat template cannot be rendered{line}: {' '.join(str(error).split())}") from None


def borders(
    tokenizer: Any, source: str | None, *, with_header: bool = True, probes: Sequence[Probe] = PROBES
) -> Borders:
    """Render the probe dialogues as generation prompts and as finished dialogues.

    Args:
        source: Template; None for the tokenizer's own.
        with_header: Whether prompts are rendered with `add_generation_prompt`.

    Raises:
        InputError: If no probe can be rendered.
    """
    options = {} if source is None else {"chat_template": source}
    found: list[Borders] = []
    for turns, answer in probes:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            prompt = render(tokenizer, messages, add_generation_prompt=with_header, **options)
            finished = render(tokenizer, [*messages, {"role": "assistant", "content": answer}], **options)
        except InputError:
            if not found:
                raise
            continue  # such as a role that the template does not know
        before, contains, tail = finished.rpartition(answer)
        is_continued = bool(contains) and before.startswith(prompt)
        between = (before[len(prompt) :],) if is_continued else ()
        found.append(Borders(between, prompt, finished, answer, tail if contains else "", is_continued))
        if not is_continued:
            break
    shown = next((each for each in found if not each.is_aligned), found[0])
    return shown._replace(between=tuple(dict.fromkeys(text for each in found for text in each.between)))


def end_of_turn(tokenizer: Any) -> EndOfTurn | None:
    """Return the first special or added token that the chat template puts after an answer, or None if there is none."""
    tail = borders(tokenizer, None).tail
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    found = re.search("|".join(map(re.escape, longest_first)), tail) if longest_first else None
    return None if found is None else EndOfTurn(tail[: found.start()].strip(), found.group())


def _aligned(tokenizer: Any, source: str, probes: Sequence[Probe]) -> str | None:
    """Return the template with the first change that works for the probe dialogues, or None if none does."""

    def borders_of(template: str, *, with_header: bool = True) -> Borders | None:
        with suppress(InputError):
            return borders(tokenizer, template, with_header=with_header, probes=probes)
        return None

    candidates = [source]
    for name in SWITCHES:
        if re.search(rf"\b{name}\b", source):
            note = f"{name} is false, because finished turns do not continue the generation prompt otherwise"
            candidates.append(with_note(source, note, f"{{% set {name} = false %}}"))
    for candidate in candidates:
        if (found := borders_of(candidate)) is not None and found.is_aligned:
            return candidate
    for candidate in candidates:
        whole = re.sub(r"(\r\n|\r|\n)\Z", "", candidate)  # Jinja leaves out one line break at the end
        for with_header in (True, False):
            found = borders_of(candidate, with_header=with_header)
            if found is None or not found.is_continued or len(found.between) != 1 or not found.between[0].strip():
                continue
            text = found.between[0].rstrip(" ")  # blanks at the end belong to the response
            note, asks, code = f"{text!r} is added to the generation prompt", "add_generation_prompt", ""
            if with_header:
                note += ", because every finished turn has it before the answer"
            else:
                note = f"the generation prompt is {text!r}, as in finished turns, instead of the template's own"
                asks = "sftmix_asks"
                code = f"{{% set {asks} = add_generation_prompt %}}{{% set add_generation_prompt = false %}}"
            changed = with_note(whole + f"{{{{ {text!r} if {asks} else '' }}}}", note, code)
            if (found := borders_of(changed)) is not None and found.is_aligned:
                return changed
    return None


def _with_fixed_date(source: str) -> str:
    """Return the template with a fixed date, if it asks for the date."""
    if not re.search(rf"\b{CLOCK}\b", source) or f"macro {CLOCK}" in source:
        return source
    replaced = "".join(f".replace('{code}', '{value}')" for code, value in DATE)
    clock = f"{{% macro {CLOCK}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}"
    note = "the date is fixed to 2024-07-26, so that prompts are the same on every day"
    return with_note(source, note, clock)


def _ending(text: str) -> str:
    return repr(("..." if len(text) > SHOWN else "") + text[-SHOWN:])
