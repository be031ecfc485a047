"""The text of --help: groups with their choices, and every setting with its default, range and meaning.

The meaning of a setting is the comment after its field in the schema. A field is not shown if it has no comment, or if
its comment begins with `(internal)`.
"""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import Field, fields
from typing import Any, get_origin

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sftmix.config.entries import GROUPS
from sftmix.config.fields import dataclass_of, hints_of, key_of_field, options_of
from sftmix.quoting import hydra_value

INTERNAL = "(internal)"
WIDTH, LINE = 38, 120  # characters of the column of keys, and of a line
OPTIONS = """\
  --config-dir FOLDER       read own files as well: FOLDER/GROUP/NAME.yaml is GROUP=NAME
  --cfg job [--resolve]     print the whole configuration and run nothing
  --help, --hydra-help      this text; all options of Hydra"""


def help_text(
    usage: str, cfg: DictConfig, hydra: DictConfig, schema: Any, *, only: Any = None, sweeps: bool = False
) -> str:
    """Return the text of --help.

    Args:
        usage: What the program does, with its most common commands.
        cfg: The composed config. Its values are the defaults.
        hydra: Hydra's own section of the config.
        only: Dataclass whose own fields are shown. None: all fields are shown.
    """
    lines = [usage, "", "Groups, GROUP=CHOICE (in brackets: the choice now)", *_groups(hydra, cfg)]
    lines += ["", "Settings, KEY=VALUE, with the value under these choices (=?: it must be given)"]
    lines += _settings(schema, cfg, "", set(), None if only is None else set(inspect.get_annotations(only)))
    options = ["  -m                        run all combinations of KEY=VALUE,VALUE,..."] if sweeps else []
    return "\n".join([*lines, "", "Options", *options, OPTIONS])


def _groups(hydra: DictConfig, cfg: DictConfig) -> Iterator[str]:
    loader = GlobalHydra.instance().config_loader()
    choices = {str(group): choice for group, choice in hydra.runtime.choices.items()}
    for group in GROUPS:  # Hydra leaves out a group if several of its choices are merged
        if group in cfg:
            choices.setdefault(group, list(cfg[group]))
    for group, choice in sorted(choices.items()):
        if group.startswith(("hydra/", "_")) or ("@" in group and group.partition("@")[0] not in choices):
            continue
        options = [name for name in loader.get_group_options(group.partition("@")[0]) if not name.startswith("_")]
        if "@" not in group:
            options = [name for name in options if name != "same"]  # this choice is for a reference
        chosen = [choice] if isinstance(choice, str) else list(choice or [])  # callbacks=[early_stopping,checkpoint]
        shown = ", ".join(f"[{name}]" if name in chosen else name for name in options)
        yield from textwrap.wrap(f"{group}: {shown}", LINE, initial_indent="  ", subsequent_indent="      ")


def _settings(schema: Any, cfg: Any, prefix: str, shown: set[Any], kept: set[str] | None = None) -> Iterator[str]:
    comments, hints = comments_of(schema), hints_of(schema)
    parts: list[tuple[str, Any]] = []
    for f in fields(schema):
        if kept is not None and f.name not in kept:
            continue
        part = dataclass_of(hints[f.name])
        if part is not None:
            parts.append((f"{prefix}{key_of_field(f)}", part))
        elif f.name in comments:
            yield _line(f"{prefix}{key_of_field(f)}", f, hints[f.name], comments[f.name], cfg)
    for key, part in parts:
        about = (part.__doc__ or "").split("\n")[0]
        if part in shown:
            yield f"\n{key}.*: the same settings as {part.__name__.lower()}.*"
            continue
        shown.add(part)
        lines = list(_settings(part, cfg, f"{key}.", shown))
        if lines:
            yield f"\n{key}: {about}{' (not chosen)' if _is_missing(cfg, key) else ''}"
            yield from lines


def _line(key: str, f: Field[Any], hint: Any, comment: str, cfg: Any) -> str:
    try:
        value = OmegaConf.select(cfg, key, throw_on_missing=True)
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        now = "=" + (value if isinstance(value, str) else hydra_value(value))
    except OmegaConfBaseException:
        now = "=?"
    if "." in key and _is_missing(cfg, key.rpartition(".")[0]):
        now = ""
    if len(now) > WIDTH:  # entries of callbacks and logger, for instance
        now = "=..."
    allowed = f.metadata.get("expected") or ("path" if "path" in f.metadata else _type_name(hint))
    left = f"  {f'{key}{now}':<{WIDTH}}  "
    right = textwrap.wrap(f"{comment} ({allowed})", LINE - len(left))
    return "\n".join([left + right[0], *(" " * (WIDTH + 4) + line for line in right[1:])])


def _is_missing(cfg: Any, key: str) -> bool:
    return OmegaConf.select(cfg, key, throw_on_resolution_failure=False) is None


def _type_name(hint: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    option = next(option for option in options_of(hint) if option is not type(None))
    if get_origin(option) in (list, dict):
        return "list" if get_origin(option) is list else "mapping"
    return names.get(option, "value")


def comments_of(schema: Any) -> dict[str, str]:
    """Return the comment after each field of a dataclass and its bases, by the field's name, without internal ones."""
    comments: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        try:
            source = inspect.getsource(kind)
        except (OSError, TypeError):  # a class of make_dataclass has no source, and the fields of its bases
            continue
        behind = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT and not re.match(r"\s*#", token.line)
        }
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                comment = next((behind[line] for line in reversed(lines) if line in behind), None)
                if comment is not None and not comment.startswith(INTERNAL):
                    comments[node.target.id] = comment
    return comments
