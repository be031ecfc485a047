"""Separate the reasoning of a model from the text that follows it."""

import re
from collections.abc import Iterator

_TAGS = "think|thinking|thought|thoughts|reasoning|analysis|scratchpad|reflection|seed:think"
# Marks at the end of the reasoning of common models. The verdict begins after the last of them.
_ENDS = re.compile(
    rf"</(?:{_TAGS})\s{{0,3}}>"  # DeepSeek-R1, Qwen3, GLM, EXAONE, Seed
    r"|\u25c1/think\u25b7"  # Kimi
    r"|\[/THINK\]"  # Magistral
    r"|\[BEGIN FINAL RESPONSE\]"  # Apriel
    r"|<\|END_THINKING\|>"  # Command A Reasoning
    r"|<\|end_of_thought\|>"  # OpenThinker, Sky-T1
    r"|<\|inner_suffix\|>"  # Apertus
    r"|<channel\|>"  # Gemma 4
    r"|<\|channel\|>\s{0,3}final\b[^<>]{0,40}(?:<\|constrain\|>[^<>]{0,40})?<\|message\|>",  # gpt-oss
    re.IGNORECASE,
)
_BEGINS = re.compile(
    rf"<(?:{_TAGS})\s{{0,3}}>|\u25c1think\u25b7|\[THINK\]"
    r"|<\|START_THINKING\|>|<\|begin_of_thought\|>|<\|inner_prefix\|>|<\|channel>"
    r"|(?:<\|start\|>\s{0,3}assistant\s{0,3})?<\|channel\|>\s{0,3}(?:analysis|commentary)\b",
    re.IGNORECASE,
)
# Reasoning with plain words as marks: the beginning of the reply, and the words before the verdict.
_PLAIN = (
    (re.compile(r"\s{0,9}(?:assistant)?analysis(?=[A-Z])"), "assistantfinal"),  # gpt-oss without its special tokens
    (re.compile(r"\s{0,9}Here is my thought process:"), "Here is my response:"),  # Granite 3.2
    (re.compile(r"\s{0,9}Here are my reasoning steps:"), "[BEGIN FINAL RESPONSE]"),  # Apriel
)
_LAST_TOKENS = re.compile(
    r"(?:\s{0,9}(?:<\|(?:return|end|im_end|eot_id|END_RESPONSE|end_of_solution)\|>|</answer>)){1,4}\s{0,9}\Z",
    re.IGNORECASE,
)
_FIRST_TOKENS = re.compile(r"\s{0,9}(?:<\|(?:START_RESPONSE|begin_of_solution)\|>|<answer>)", re.IGNORECASE)


def verdict_start(text: str) -> int | None:
    """Return the index at which the verdict of a reply begins, or None if the reply ends within the reasoning.

    The verdict begins after the last end mark (`</think>` and the like). If reasoning begins after that mark and does
    not end, there is no verdict. A beginning mark within a line without an end mark is only a mention of the mark.
    """
    start = max((match.end() for match in _ENDS.finditer(text)), default=0)
    final = _plain_final(text)
    if start == 0 and final is not None:
        found = text.rfind(final)
        return None if found < 0 else found + len(final)
    first = _FIRST_TOKENS.match(text, start)
    start = first.end() if first else start
    return None if _first_unclosed(text, start) == start else start


def verdict_of(text: str, is_cut: bool = False) -> str:
    """Return a reply without its reasoning; empty if the reply ends within the reasoning.

    Args:
        is_cut: Whether the reply was cut by length. A beginning mark within a line then begins reasoning.
    """
    start = verdict_start(text)
    if start is None:
        return ""
    end = _first_unclosed(text, start, within_line=is_cut)
    verdict = text[start : len(text) if end is None else end]
    last = _LAST_TOKENS.search(verdict, max(0, len(verdict) - 200))
    return verdict[: last.start()] if last else verdict


def answer_of(text: str) -> str:
    """Return an answer without the reasoning before it, as a user reads it.

    An answer may write about `<think>` and `</think>`. Therefore only reasoning at the beginning is removed, up to its
    first end mark, and only if a line begins with that mark or the answer begins with a beginning mark.
    """
    final = _plain_final(text)
    if final is not None and final in text:
        return text[text.rfind(final) + len(final) :]
    begin = _BEGINS.search(text)
    begins = begin is not None and not text[: begin.start()].strip()
    end = _ENDS.search(text) if begins else next(_matches_that_begin_lines(_ENDS, text), None)
    if end is None:
        return "" if begins else text
    if not begins and begin is not None and begin.start() < end.start():
        return text
    rest = text[end.end() :]
    first, last = _FIRST_TOKENS.match(rest), _LAST_TOKENS.search(rest, max(0, len(rest) - 200))
    return rest[first.end() if first else 0 : last.start() if last else len(rest)].lstrip("\n")


def _plain_final(text: str) -> str | None:
    """Return the words before the verdict if a reply begins with reasoning marked by plain words, or None."""
    return next((final for begin, final in _PLAIN if begin.match(text)), None)


def _first_unclosed(text: str, start: int, within_line: bool = False) -> int | None:
    """Return where unfinished reasoning begins: at `start` (after blanks) or at the beginning of a line; or None."""
    first = _BEGINS.search(text, start)
    if first is None:
        return None
    if not text[start : first.start()].strip():
        return start
    found = first if within_line else next(_matches_that_begin_lines(_BEGINS, text, start), None)
    return None if found is None else found.start()


def _matches_that_begin_lines(pattern: re.Pattern[str], text: str, start: int = 0) -> Iterator[re.Match[str]]:
    """Yield the matches that only blanks precede in their line. The time is linear in the length of the text."""
    behind = text.rfind("\n", 0, start) + 1
    for match in pattern.finditer(text, start):
        behind = max(behind, text.rfind("\n", behind, match.start()) + 1)
        if not text[behind : match.start()].strip():
            yield match
        behind = match.start()
