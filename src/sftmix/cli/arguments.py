"""Prepare the arguments of the command line for Hydra: check options and settings of Hydra, and quote paths."""

import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from sftmix.config.fields import path_keys
from sftmix.errors import ConfigError
from sftmix.quoting import hydra_quoted, hydra_value, key_of, shell_word, without_interpolation

COMPOSED_BY = ("config_dir", "config_path", "config_name")  # options that say what is composed
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
EFFECTIVE = ("hydra.searchpath",)  # settings of Hydra that have an effect here
EFFECTIVE_IN_SWEEPS = ("hydra.mode", "hydra.sweeper.params", "hydra.sweeper.runs")
MOST_COMMAS = 32  # in the name of one path

Parse = Callable[[str], Override]


def read_arguments(arguments: Sequence[str], schema: Any, *, sweeps: bool) -> list[str]:
    """Return the arguments for Hydra: options, then overrides whose paths are quoted.

    Args:
        schema: Dataclass of the config, which marks the keys of paths.
        sweeps: Whether the program can run sweeps.

    Raises:
        ConfigError: If an option or override cannot be read or has no effect here.
    """
    options = _options(arguments)
    _check_options(options, sweeps)
    paths, parse = path_keys(schema), OverridesParser.create().parse_override
    overrides = [_override(given, paths, parse, sweeps, options.multirun) for given in options.overrides]
    switches = ("multirun", "run", "help", "hydra_help", "resolve", "shell_completion")
    given = ["-m" if name == "multirun" else _option(name) for name in switches if getattr(options, name)]
    named = _named(options, (*COMPOSED_BY, "cfg", "package", "info"))
    return [*given, *named, *([] if options.hydra_help else overrides)]


def composed_by(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that say where configs are read, such as --config-dir and hydra.searchpath."""
    options = _options(arguments)
    searched = [given for given in options.overrides if key_of(given) == "hydra.searchpath"]
    return [*_named(options, COMPOSED_BY), *searched]


def _options(arguments: Sequence[str]) -> Namespace:
    """Read the options of Hydra. Overrides may be anywhere among them."""

    def refuse(message: str) -> NoReturn:
        if found := re.fullmatch(r"unrecognized arguments: --?([\w.@/]+=.*)", message, re.DOTALL):
            raise ConfigError(f"--{found[1]}: write {found[1]}, without --")
        raise ConfigError(f"{message}; --help explains the settings, --hydra-help the options")

    parser = get_args_parser()
    parser.error = refuse
    given = list(arguments)
    for number, argument in enumerate(given):  # without a value, --info would take the next override
        if argument in ("--info", "-i") and (number + 1 == len(given) or given[number + 1] not in INFO):
            given[number] = "--info=all"
    return parser.parse_intermixed_args(given)


def _check_options(options: Namespace, sweeps: bool) -> None:
    """Refuse options that have no effect here or exclude each other."""
    if options.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: it reads a pickle, use python report.py rerun=RUN")
    actions = [name for name in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(options, name)]
    if len(actions) > 1 and not (options.help or options.hydra_help):
        names = " and ".join(map(_option, actions))
        raise ConfigError(f"{names}: expected one of them" + (", without -m" if "multirun" in actions else ""))
    if options.multirun and not sweeps:
        raise ConfigError("-m: this program runs no sweeps, run the command once for each value")
    for name in ("resolve", "package"):
        if getattr(options, name) and options.cfg is None:
            raise ConfigError(f"--{name}: it only works with --cfg: --cfg job --{name}")
    if options.shell_completion:
        subcommand, _, shell = "".join(options.overrides[:1]).partition("=")
        known = subcommand in ("install", "uninstall", "query") and shell in ("bash", "zsh", "fish")
        if len(options.overrides) != 1 or not known or (subcommand == "query" and "COMP_LINE" not in os.environ):
            program = shell_word(sys.argv[0])
            raise ConfigError(
                f"--shell-completion: expected install=bash, zsh or fish, or uninstall=, as in "
                f'eval "$(python {program} --shell-completion install=bash)"'
            )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _named(options: Namespace, names: Sequence[str]) -> list[str]:
    """Return the given options that have a value, with their values. A `~` is read as the home folder."""
    words: list[str] = []
    for name in names:
        if (value := getattr(options, name)) is not None:
            words += [_option(name), os.path.expanduser(value) if name in COMPOSED_BY else value]
    return words


def _override(
    given: str, paths: Mapping[str, tuple[bool, type | None]], parse: Parse, sweeps: bool, multirun: bool
) -> str:
    """Return an override for Hydra. Refuse one that cannot be read or has no effect here."""
    key, equals, value = given.partition("=")
    name = key_of(given)
    if name == "hydra" or name.startswith(("hydra.", "hydra/")):
        _check_hydra_setting(given, name, sweeps)
    if not equals and given.startswith("~"):
        return given
    if not equals or not name:
        raise ConfigError(f"{given}: cannot be read, expected key=value")
    marked = name if name in paths else name.rpartition(".")[0]  # the keys of a mapping of paths are free
    always, several = paths.get(marked, (False, None))
    is_mapping = marked == name and (several is dict or (several is object and value.startswith("{")))
    if is_mapping and value not in ("", "null") and not re.match(r"\{|\$\{", value):
        raise ConfigError(f"{given}: expected a mapping: '{key}={{NAME: VALUE}}'")
    if marked in paths and value and not is_mapping:
        return _path_override(key, value, parse, always=always, is_list=several in (list, object), multirun=multirun)
    if name == "hydra.searchpath" and value.startswith("[") and value.endswith("]"):
        given = f"{key}={_written(_elements(value[1:-1], prefixes=('file://', 'pkg://')))}"
    if is_mapping and value.endswith("}") and _parsed(given, parse) is None:
        given = f"{key}={_mapping_of_paths(value, parse)}"
    if _parsed(given, parse) is None:
        quoted = f"{key}={hydra_quoted(without_interpolation(value))}"
        can_be_quoted = value and not is_mapping and _parsed(quoted, parse) is not None
        hint = f"; a value with special characters is quoted: {shell_word(quoted)}" if can_be_quoted else ""
        expected = "{NAME: VALUE} with names of letters and digits" if is_mapping else "key=value"
        raise ConfigError(f"{given}: cannot be read, expected {expected}{hint}")
    return given


def _check_hydra_setting(given: str, name: str, sweeps: bool) -> None:
    known = (*EFFECTIVE, *EFFECTIVE_IN_SWEEPS) if sweeps else EFFECTIVE
    if any(name == setting or name.startswith(f"{setting}.") for setting in known):
        return
    instead = "root=FOLDER sets where everything is written"
    if "launcher" in name or "sweeper" in name:
        instead = "sweep=local and sweep=slurm set how runs are started" if sweeps else "there is no sweep"
    raise ConfigError(f"{given}: this setting of Hydra has no effect here, {instead}")


def _path_override(key: str, value: str, parse: Parse, *, always: bool, is_list: bool, multirun: bool) -> str:
    """Return the override of a path: the literal text if the path exists, otherwise what Hydra reads.

    A text is refused if the path does not exist and Hydra reads the text as something other than a path.
    """
    exact = _existing(value)
    if exact is not None:
        return f"{key}={hydra_value(exact)}"
    if multirun and len(several := _elements(value)) > 1 and all(path for _, path in several):
        return f"{key}={','.join(hydra_value(path) for _, path in several)}"
    literal, override = f"{key}={hydra_value(value)}", f"{key}={value}"
    if is_list and value.startswith("[") and value.endswith("]"):
        lists = [_elements(inside) for inside in (value[1:-1].split("],[") if multirun else [value[1:-1]])]
        override = f"{key}={','.join(map(_written, lists))}"
        literal = f"{key}={','.join(hydra_value([path or text.strip() for text, path in some]) for some in lists)}"
    parsed = _parsed(override, parse)
    if parsed is not None and parsed.is_sweep_override():
        return literal if always and not multirun else override
    read = None if parsed is None else parsed.value()
    if parsed is None or isinstance(read, dict) or (isinstance(read, list) and not is_list):
        if always:
            return literal
        raise ConfigError(
            f"{key}={value}: no such file or folder, and Hydra reads some of its characters as syntax; such a path is "
            f"quoted: {shell_word(literal)}"
        )
    is_as_given = read is None or isinstance(read, list) or isinstance(parsed._value, QuotedString) or "${" in value
    return override if is_as_given or read == value else literal


def _parsed(override: str, parse: Parse) -> Override | None:
    try:
        return parse(override)
    except HydraException:
        return None


def _existing(text: str) -> str | None:
    """Return the path that a text names if it exists, otherwise None. `~` is the home folder."""
    if text in ("", "null"):
        return None
    home = os.path.expanduser(text)
    if home != text and os.path.lexists(home):
        return home
    if not os.path.lexists(text):
        return None
    return f"./{text}" if text.startswith("~") else text


def _written(elements: Sequence[tuple[str, str | None]]) -> str:
    """Write elements as a list for Hydra. Existing paths are quoted, other texts are unchanged."""
    return f"[{','.join(hydra_value(path) if path else text for text, path in elements)}]"


def _mapping_of_paths(value: str, parse: Parse) -> str:
    """Write `{NAME: PATH}` for Hydra: paths that Hydra could not read are quoted, other texts are unchanged."""
    pairs = [pair.partition(":") for pair in re.split(r",(?=\s*[\w.-]+\s*:)", value[1:-1])]
    written = []
    for name, colon, text in pairs:
        path = _existing(text.strip()) or text.strip()
        written.append(f"{name}{colon}{text if _parsed(f'key={text}', parse) else hydra_value(path)}")
    return f"{{{','.join(written)}}}"


def _elements(text: str, prefixes: tuple[str, ...] = ()) -> list[tuple[str, str | None]]:
    """Split a list or sweep at commas, unless a comma is part of the name of an existing path.

    Args:
        prefixes: Prefixes that may precede a path, such as file://.

    Returns:
        The text of each element, and the path that the text names if the path exists.
    """
    parts, elements, start = text.split(","), list[tuple[str, str | None]](), 0
    while start < len(parts):
        ends = range(min(len(parts), start + MOST_COMMAS), start, -1)  # the longest name first
        names = ((",".join(parts[start:end]), end) for end in ends)
        found = ((name, _prefixed(name, prefixes) or _prefixed(name.strip(), prefixes), end) for name, end in names)
        name, path, start = next((entry for entry in found if entry[1]), (parts[start], None, start + 1))
        elements.append((name, path))
    return elements


def _prefixed(text: str, prefixes: tuple[str, ...]) -> str | None:
    prefix = next((prefix for prefix in prefixes if text.startswith(prefix)), "")
    found = _existing(text.removeprefix(prefix))
    return None if found is None else prefix + found
