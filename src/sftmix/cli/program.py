"""Run a `hydra.main` function, and print every error that a user can cause in one line."""

import errno
import io
import os
import re
import select
import signal
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sftmix.cli.arguments import read_arguments
from sftmix.config.entries import GROUPS, SECRET
from sftmix.config.load import RENAMED_CHOICES, explain_omegaconf, keys_of, new_name, unknown_key
from sftmix.config.schema import Config
from sftmix.errors import INTERRUPTED, ConfigError, InputError, StageError, Stopped, explain_os_error
from sftmix.quoting import hydra_quoted, key_of, shell_word
from sftmix.terminal import one_line, visible

OUTPUT = "standard output"
HYDRAS_PARSER = "overrides_visitor.py"
SHOWN_AS = {"mixup": "Mixup"}
HINTS = {
    "judge": "there is no judge, choose judge=fake, gpt41 or openai_compatible",
    "data.select": "nothing is selected, choose data/select=longest, scores, ids or random",
    "model.lora": "all weights are tuned, choose model/lora=default",
    "reference.model.lora": "the reference follows the target's model, choose model/lora@reference.model=default",
}


def run(main: Callable[[], Any], schema: Any = Config, *, sweeps: bool = False) -> None:
    """Call a `hydra.main` function whose config is of the dataclass `schema`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them in several lines
    with errors_in_one_line(schema):
        sys.argv[1:] = read_arguments(sys.argv[1:], schema, sweeps=sweeps)
        if "--help" in sys.argv:  # composed as a single run, so that the defaults are those of the given choices
            sys.argv[1:] = [given for given in sys.argv[1:] if given not in ("--help", "-m")] + ["hydra.mode=RUN"]
            _help.append(True)
        warnings.filterwarnings("error", "provider=.* is not available", UserWarning)
        try:
            main()
        except ValueError as error:  # Hydra raises it for a group without a choice
            if "Config group override" not in str(error):
                raise
            raise ConfigError(f"{' '.join(str(error).split())}") from None
        except UserWarning as warning:  # Hydra only warns if a folder of hydra.searchpath does not exist
            place = re.search(r"path=(.*) is not available", str(warning), re.DOTALL)
            if place is None:
                raise
            raise ConfigError(f"hydra.searchpath: no such folder or package: {place[1]}") from None


_help: list[bool] = []  # not empty if --help was given


def explained(usage: str, cfg: DictConfig, schema: Any = Config, *, only: Any = None, sweeps: bool = False) -> bool:
    """Print the help if --help was given, and return whether it was. The arguments are those of `help_text`."""
    if not _help:
        return False
    from hydra.core.hydra_config import HydraConfig

    from sftmix.cli.help import help_text

    print(help_text(usage, cfg, HydraConfig.get(), schema, only=only, sweeps=sweeps))
    return True


# Settings of Hydra in `conf/`. The program has its own folders and log files.
OF_HYDRA = {"run.dir": ".", "output_subdir": None, "job.chdir": False, "verbose": False}


def check_hydra(composed: Any) -> None:
    """Refuse settings of Hydra in a config file that have no effect.

    Args:
        composed: Hydra's section of the config.
    """
    for key, ours in OF_HYDRA.items():
        value = OmegaConf.select(composed, key)
        if value != ours:
            raise ConfigError(
                f"hydra.{key}={value} in a configuration file: this setting of Hydra has no effect here, root=FOLDER "
                f"sets where everything is written; a primary file of yours begins with `defaults: [config, _self_]`"
            )


@contextmanager
def errors_in_one_line(schema: Any = Config) -> Iterator[None]:
    """End the process with one line and exit code 2 for an error that the user can fix, such as a full disk.

    Any other error is a defect of the program and keeps its traceback. If the reader has closed the standard output
    (`| head`), the process prints nothing and ends with the exit code of SIGPIPE.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        except SystemExit:
            _flush()
            raise
        _flush()
    except ConfigError as error:
        _end(f"config error: {error}")
    except InputError as error:
        _end(f"error: {error}")
    except OmegaConfBaseException as error:
        _end(f"config error: {explain_omegaconf(error, schema)}")
    except HydraException as error:
        _end(f"config error: {explain_composition(error, sys.argv[1:], schema)}")
    except YAMLError as error:
        _end(f"config error: {' '.join(str(error).split())}")
    except Stopped as stopped:
        _end(f"{stopped}: run the same command again{', it goes on' if stopped.is_saved else ''}", code=stopped.code)
    except OSError as error:
        if error.errno == errno.EPIPE and error.filename in (None, OUTPUT) and _is_closed(sys.stdout):
            _discard_output()
            sys.exit(128 + signal.SIGPIPE)
        if error.errno == errno.ENOSPC and error.filename is None and _is_full(sys.stdout):
            error.filename = OUTPUT
        _end(f"error: {explain_os_error(error)}")
    except StageError as error:
        print(visible(str(error)), file=sys.stderr)
        sys.exit(1)
    except (AttributeError, StopIteration) as error:  # Hydra's parser of overrides relies on its asserts
        files = {os.path.basename(frame.filename) for frame in traceback.extract_tb(error.__traceback__)}
        if not sys.flags.optimize or HYDRAS_PARSER not in files:
            raise
        _end(
            "config error: under `python -O` or PYTHONOPTIMIZE Hydra cannot read values such as {a: b} or "
            "choice(a, b), run the command without -O and PYTHONOPTIMIZE"
        )
    except KeyboardInterrupt:
        _end("interrupted: the same command goes on with what is not done", code=INTERRUPTED)


# Errors of Hydra that need only the text that the pattern finds.
COMPOSITION_ERRORS = (
    (r"Could not load '([^']+)/([^'/]+)'", "{0}=[{1}]: no such choice, --help lists them"),
    (r"Multiple values for (\S+?)\.", "+{0}=...: write {0}=... without +"),
    (
        r"Could not append to config\. An item is already at '(\S+)'",
        "+{0}=...: the key exists, write {0}=... without +",
    ),
    (r"(?is)error (?:when )?parsing override '(.*?)'\n", "{0}: cannot be read, expected key=value"),
)


def explain_composition(error: HydraException, overrides: list[str], schema: Any = Config) -> str:
    """Return an error of Hydra's composition as one line: the key, the value, and what is allowed."""
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return _explain_override(found.group(1), overrides, error.__cause__, schema)
    if found := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':\s*(.*)", text, re.DOTALL):
        choice, group, options = found.groups()
        given = f"{group}={choice.removeprefix(group + '/')}"
        if given in RENAMED_CHOICES:
            return f"{given}: this choice is now {RENAMED_CHOICES[given]}"
        names = [name for line in options.splitlines() if (name := line.strip()) and ":" not in name and name[0] != "_"]
        return f"{given}: no such choice, expected one of {', '.join(names)}"
    if found := re.search(r"Could not delete from config\. '([^']+)' does not exist", text):
        return f"~{unknown_key(found.group(1), schema=schema)}"
    if found := re.search(r"Ambiguous value for argument '(.*?)'", text):
        key, _, value = found.group(1).partition("=")
        quoted = shell_word(f"{key}={hydra_quoted(value)}")
        return f"{key}={value}: several values, add -m to sweep over them; one value with commas is quoted: {quoted}"
    for pattern, message in COMPOSITION_ERRORS:
        if found := re.search(pattern, text):
            return message.format(*found.groups())
    if isinstance(error.__cause__, OmegaConfBaseException):
        return explain_omegaconf(error.__cause__, schema)
    return " ".join(text.split())


def _explain_override(key: str, overrides: list[str], cause: BaseException | None, schema: Any) -> str:
    value = _value_of(key, overrides)
    parent, _, name = key.rpartition(".")
    if SECRET.search(name) and name not in (keys_of(parent, schema) or []):
        return f"{key}: the config takes no keys or tokens; set the environment variable of the service instead"
    if (entry := key.split("."))[0] in GROUPS and len(entry) > 2 and new_name(key, schema) is None:
        if "not in struct" in str(cause) and f"full_key: {'.'.join(entry[:2])}\n" in str(cause):
            return f"{key}={value}: it is not chosen, choose {entry[0]}={entry[1]}, or [A,{entry[1]}] for several"
        return f"{key}={value}: {'.'.join(entry[:2])} has no such key; to pass it to the class, write +{key}={value}"
    if name not in (keys_of(parent, schema) or []):
        return unknown_key(key, value, schema)
    group, _, part = parent.partition(".")
    choice = _value_of(group, overrides)
    if "not in struct" in str(cause) and parent in HINTS:
        return f"{key}={value}: {HINTS[parent]}"
    if part and "not in struct" in str(cause):
        which = f"{group} {choice}" if choice else f"the chosen {group}"
        return f"{key}={value}: {which} has no {SHOWN_AS.get(part, part)}"
    if isinstance(cause, OmegaConfBaseException) and "not in struct" in str(cause):
        return unknown_key(cause.full_key or key, schema=schema)
    return f"{key}={value}: {str(cause).splitlines()[0] if cause else 'cannot be set'}"


def _value_of(key: str, overrides: list[str]) -> str | None:
    return next((override.partition("=")[2] for override in overrides if key_of(override) == key), None)


def _flush() -> None:
    """Write what was printed while an error can still be reported. An OSError names the standard output."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, OUTPUT) from None


def _is_closed(stream: Any) -> bool:
    with suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def _is_full(stream: Any) -> bool:
    """Whether a stream writes to `/dev/full` or to a file on a full disk."""
    with suppress(OSError, ValueError):
        mode = os.fstat(stream.fileno()).st_mode
        return stat.S_ISCHR(mode) or (stat.S_ISREG(mode) and os.fstatvfs(stream.fileno()).f_bavail == 0)
    return False


def _discard_output() -> None:
    """Discard what could not be printed. Otherwise the interpreter would fail again when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(line: str, code: int = 2) -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a further Ctrl-C ends the process without a traceback
    print(one_line(line), file=sys.stderr)
    sys.exit(code)
