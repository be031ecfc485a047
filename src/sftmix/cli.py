"""The command line: Hydra's, with every error that a user can cause told in one line."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sftmix.boundary import explain_omegaconf, keys_of, unknown_key
from sftmix.config import Config
from sftmix.errors import INTERRUPTED, ConfigError, InputError, StageError, Stopped
from sftmix.terminal import one_line, visible
from sftmix.training.stopping import PARENT, StopRequest, die_with

SHOWN_AS = {"mixup": "Mixup"}
HINTS = {
    "judge": "there is no judge, choose judge=fake, gpt41 or openai_compatible",
    "data.select": "nothing is selected, choose data/select=longest, scores, ids or random",
    "model.lora": "all weights are tuned, choose model/lora=default",
    "reference.model.lora": "the reference follows the target's model, choose model/lora@reference.model=default",
}


def run(main: Callable[[], Any], schema: Any = Config, stop_signals: Sequence[str] = ()) -> None:
    """Call a `hydra.main` function. Errors that Hydra finds in the command line are printed in one line.

    Args:
        main: The function.
        schema: Dataclass of its configuration.
        stop_signals: Names of the signals that end the program with exit code 75 until `main` handles them itself.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing several lines of its own
    if PARENT in os.environ:  # a job of a sweep: it saves its state when the sweep is killed
        die_with(int(os.environ.pop(PARENT)), signal.SIGTERM)
    with StopRequest(stop_signals).listening() if stop_signals else nullcontext(), errors_in_one_line(schema):
        for argument in sys.argv[1:]:
            if found := re.match(r"--([\w@/]+(?:\.\w+)+=.*)", argument):
                raise ConfigError(f"{argument}: write {found.group(1)}, without --")
        try:
            main()
        except ValueError as error:  # Hydra's own, for a group that is given no name
            if "Config group override" not in str(error):
                raise
            raise ConfigError(f"{' '.join(str(error).split())}") from None


@contextmanager
def errors_in_one_line(schema: Any = Config) -> Iterator[None]:
    """End the process with one line and exit code 2 for an error that the user can mend.

    Anything else is a defect of the program and keeps its traceback.
    """
    try:
        yield
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
        _end(f"{stopped}: run the same command again, it goes on", code=stopped.code)
    except StageError as error:
        print(visible(str(error)), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        _end("interrupted: the same command goes on with what is not done", code=INTERRUPTED)


def explain_composition(error: HydraException, overrides: list[str], schema: Any = Config) -> str:
    """Hydra's own composition error in one line: the key, the value, what is allowed."""
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return _explain_override(found.group(1), overrides, error.__cause__, schema)
    if found := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':\s*(.*)", text, re.DOTALL):
        choice, group, options = found.groups()
        names = ", ".join(
            line.strip()
            for line in options.strip().splitlines()
            if line.strip() and ":" not in line and not line.strip().startswith("_")
        )
        return f"{group}={choice.removeprefix(group + '/')}: no such choice, expected one of {names}"
    if found := re.search(r"Multiple values for (\S+?)\.", text):
        group = found.group(1)
        return f"+{group}=...: write {group}=... without +"
    if found := re.search(r"Ambiguous value for argument '(.*?)'", text):
        return f"{found.group(1)}: several values, add -m to sweep over them"
    if found := re.search(r"(?i)error (?:when )?parsing override '(.*?)'", text):
        return f"{found.group(1)}: cannot be read, expected key=value"
    if isinstance(error.__cause__, OmegaConfBaseException):
        return explain_omegaconf(error.__cause__, schema)
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _explain_override(key: str, overrides: list[str], cause: BaseException | None, schema: Any) -> str:
    value = _value_of(key, overrides)
    parent, _, name = key.rpartition(".")
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
    given = (o.partition("=") for o in overrides)
    return next((value for name, _, value in given if name.lstrip("+~") == key), None)


def _end(line: str, code: int = 2) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a further Ctrl-C ends the process without a traceback
    print(one_line(line), file=sys.stderr)
    sys.exit(code)
