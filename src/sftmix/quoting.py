"""Write values for Hydra's command line and arguments for a shell, with as few quotes as possible."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftmix.terminal import visible

# Words that Hydra or YAML reads as something other than text.
WORDS = ("null", "none", "true", "false", "yes", "no", "on", "off", "nan", "inf")


def hydra_value(value: Any) -> str:
    """Write None, a bool, a number, a text, or a list or mapping of them so that Hydra reads exactly this value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{hydra_value(k)}:{hydra_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    text = str(value)
    is_plain = re.fullmatch(r"[A-Za-z/_][A-Za-z0-9_./@-]*", text, re.ASCII) and text.lower() not in WORDS
    return text if is_plain else hydra_quoted(without_interpolation(text))


def key_of(override: str) -> str:
    """Return the key of an override without a leading `+` or `~`."""
    return override.partition("=")[0].lstrip("+~")


def hydra_quoted(text: str) -> str:
    """Put a text into Hydra's quotes. In these, a backslash is only special before the quote character."""
    quote = "'" if '"' in text and "'" not in text else '"'
    escaped = re.sub(rf"(\\*)({quote}|\Z)", lambda found: 2 * found[1] + (f"\\{quote}" if found[2] else ""), text)
    return f"{quote}{escaped}{quote}"


def without_interpolation(text: str) -> str:
    r"""Escape each `${`, which OmegaConf would replace, and double the backslashes before it."""
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)


def shell_word(argument: str) -> str:
    """Quote one argument for bash or zsh with as few quotes as possible."""
    if shlex.quote(argument) == argument:
        return argument
    if visible(argument) != argument or "\n" in argument:  # bytes keep the word on one line
        return f"$'{''.join(map(_ansi_c, argument))}'"
    if "'" not in argument:
        return f"'{argument}'"
    if not re.search(r'["$`\\!]', argument):
        return f'"{argument}"'
    return shlex.quote(argument)


def train_script() -> str:
    """Return the path of `train.py` from the current folder. It is in the folder of the running program."""
    script = Path(sys.argv[0])
    is_ours = script.name in ("train.py", "eval.py", "report.py", "records.py")
    is_elsewhere = is_ours and script.resolve().parent != Path.cwd().resolve()
    return str(script.with_name("train.py")) if is_elsewhere else "train.py"


def shell_command(arguments: Sequence[str]) -> str:
    """Join arguments into one line for a shell."""
    return " ".join(map(shell_word, arguments))


def _ansi_c(character: str) -> str:
    """Write a character for a word of the form `$'...'`."""
    if character in "\\'":
        return f"\\{character}"
    if character == "\n":
        return "\\n"
    if visible(character) == character:
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))
