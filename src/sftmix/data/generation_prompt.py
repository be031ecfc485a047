"""Make a chat template's generation prompt the beginning of its finished turns (DESIGN.md, section 6).

Training renders a finished dialogue, generation a prompt. Some templates put text into only one of the two: an empty
think block, a channel marker, a date. What is found is written into the template as Jinja, so the exported model's
`apply_chat_template(add_generation_prompt=True)` renders exactly the prompt of training.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sftmix.errors import InputError

NOTE = re.compile(r"\{# sftmix: (.*?) #\}", re.DOTALL)
SHOWN = 60  # characters of an ending that a message shows

# (turns before the answer, answer); the answers begin with different letters, the first two have no history
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
        is_continued: Whether each finished turn begins with its prompt and contains its answer.
    """

    between: tuple[str, ...]
    prompt: str
    finished: str
    answer: str
    tail: str
    is_continued: bool


class EndOfTurn(NamedTuple):
    """What a chat template puts after an answer."""

    text: str  # between answer and token, without outer white space; usually empty
    token: str  # ends the turn


def align_generation_prompt(tokenizer: Any, key: str) -> None:
    """Change the tokenizer's chat template until finished turns continue its generation prompt.

    The first of these that works is taken: the template as it is; `enable_thinking` (or `thinking`) set to false; the
    text that is constant between the generation prompt and the answer added to the prompt; the header of finished turns
    instead of the generation prompt. If none works with a system message, the same is tried without one, and the
    encoder drops examples that have one: templates of Mistral show the message in the last turn only, if it is the
    user's. A date (`strftime_now`) is fixed first, so prompts do not depend on the day. Each change is written into the
    template with a note (`notes_of`). An aligned template is not changed again.

    Args:
        tokenizer: Its `chat_template` is replaced.

    Raises:
        InputError: If the template cannot be rendered, or no change makes finished turns continue the prompt.
    """
    several = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else None
    if several is not None and "default" not in several:
        raise InputError(
            f"{key}: the tokenizer has {len(several)} chat templates ({', '.join(several)}) and none named default, "
            "expected one: give it as data.template=FILE.jinja"
        )
    source = several["default"] if several is not None else tokenizer.chat_template
    aligned = _aligned(tokenizer, _with_fixed_date(source), key)
    _set(tokenizer, aligned)
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
            _set(tokenizer, with_note(aligned, note))
    elif not any(token.special for token in tokenizer.added_tokens_decoder.values() if token.content == end.token):
        make_special(tokenizer, end.token)


def make_special(tokenizer: Any, token: str) -> None:
    """Make an added token special: its string in a text then stays text, and decoding can leave the token out."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)


def _set(tokenizer: Any, source: str) -> None:
    own = tokenizer.chat_template
    tokenizer.chat_template = {**own, "default": source} if isinstance(own, dict) else source


def notes_of(template: Any) -> list[str]:
    """Return what was changed in a chat template when it was set for training, one sentence for each change."""
    source = template.get("default", "") if isinstance(template, dict) else template or ""
    return NOTE.findall(source)


def with_note(source: str, note: str, code: str = "") -> str:
    """Return a template with a note, and Jinja code that prints nothing, in front of it."""
    note = note.replace("#}", "# }").replace("\n", "\\n")
    return f"{{# sftmix: {note} #}}{code}\n{source}"  # the line break after a block is not printed (trim_blocks)


def render(tokenizer: Any, turns: Sequence[dict[str, str]], **options: Any) -> str:
    """Return a dialogue as the chat template renders it.

    Raises:
        InputError: If the template cannot be rendered, with the error of the template.
    """
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
    between: dict[str, None] = {}
    found: Borders | None = None
    has_odd = False
    for turns, answer in probes:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            prompt = render(tokenizer, messages, add_generation_prompt=with_header, **options)
            finished = render(tokenizer, [*messages, {"role": "assistant", "content": answer}], **options)
        except InputError:
            if found is None:
                raise
            continue  # such as a role that the template does not know
        before, contains, tail = finished.rpartition(answer)
        is_continued = bool(contains) and before.startswith(prompt)
        if is_continued:
            between[before[len(prompt) :]] = None
        is_odd = not is_continued or bool(before[len(prompt) :].strip())
        if found is None or (is_odd and not has_odd):
            has_odd = is_odd
            found = Borders((), prompt, finished, answer, tail if contains else "", is_continued)
        if not is_continued:
            break
    assert found is not None
    return found._replace(between=tuple(between))


def end_of_turn(tokenizer: Any) -> EndOfTurn | None:
    """Return the first special or added token that the chat template puts after an answer, or None if there is none.

    Raises:
        InputError: If the template cannot be rendered.
    """
    tail = borders(tokenizer, None).tail
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    found = re.search("|".join(map(re.escape, longest_first)), tail) if longest_first else None
    return None if found is None else EndOfTurn(tail[: found.start()].strip(), found.group())


def _aligned(tokenizer: Any, source: str, key: str) -> str:
    """Return the template with the first change that works; raise `InputError` if none does."""
    as_it_is = borders(tokenizer, source)
    changed = _changed(tokenizer, source, PROBES)
    if changed is not None:
        return changed
    changed = _changed(tokenizer, source, WITHOUT_SYSTEM)
    if changed is not None:
        return changed if SYSTEM_DROPPED in notes_of(changed) else with_note(changed, SYSTEM_DROPPED)
    raise InputError(
        f"{key}: the chat template cannot be trained with: what it renders with the response does not continue what it "
        f"renders for generation. The generation prompt ends with {_ending(as_it_is.prompt)}, the same dialogue with "
        f"the answer {as_it_is.answer!r} ends with {_ending(as_it_is.finished)}. Choose another template, such as "
        "data.template=chatml, or give a corrected one as data.template=FILE.jinja"
    )


def _changed(tokenizer: Any, source: str, probes: Sequence[Probe]) -> str | None:
    """Return the template with the first change that works for the probe dialogues, or None if none does."""
    if _is_blank(_borders_or_none(tokenizer, source, probes=probes)):
        return source
    candidates = [source, *_switched(source)]
    for candidate in candidates[1:]:
        if _is_blank(_borders_or_none(tokenizer, candidate, probes=probes)):
            return candidate
    for candidate in candidates:
        for with_header in (True, False):
            found = _borders_or_none(tokenizer, candidate, with_header=with_header, probes=probes)
            if found is None or not found.is_continued or len(found.between) != 1 or not found.between[0].strip():
                continue
            changed = (_continued if with_header else _with_other_header)(candidate, found.between[0])
            if _is_blank(_borders_or_none(tokenizer, changed, probes=probes)):
                return changed
    return None


def _is_blank(found: Borders | None) -> bool:
    """Whether finished turns continue the prompt, with nothing but white space before the answer."""
    return found is not None and found.is_continued and not any(text.strip() for text in found.between)


def _borders_or_none(
    tokenizer: Any, source: str, *, with_header: bool = True, probes: Sequence[Probe] = PROBES
) -> Borders | None:
    try:
        return borders(tokenizer, source, with_header=with_header, probes=probes)
    except InputError:
        return None


def _switched(source: str) -> Iterator[str]:
    """Yield the template with reasoning turned off, one for each variable of `SWITCHES` in it."""
    for name in SWITCHES:
        if re.search(rf"\b{name}\b", source):
            note = f"{name} is false, because finished turns do not continue the generation prompt otherwise"
            yield with_note(source, note, f"{{% set {name} = false %}}")


def _continued(source: str, text: str) -> str:
    """Return the template with a text after its generation prompt. Blanks at its end belong to the response."""
    text = text.rstrip(" ")
    note = f"{text!r} is added to the generation prompt, because every finished turn has it before the answer"
    return with_note(_whole(source) + f"{{{{ {text!r} if add_generation_prompt else '' }}}}", note)


def _with_other_header(source: str, text: str) -> str:
    """Return the template with the header of its finished turns instead of its generation prompt."""
    text = text.rstrip(" ")
    note = f"the generation prompt is {text!r}, as in finished turns, instead of the template's own"
    code = "{% set sftmix_asks = add_generation_prompt %}{% set add_generation_prompt = false %}"
    return with_note(_whole(source) + f"{{{{ {text!r} if sftmix_asks else '' }}}}", note, code)


def _whole(source: str) -> str:
    """Return a template as Jinja reads it, without one line break at the end."""
    return re.sub(r"(\r\n|\r|\n)\Z", "", source)


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
