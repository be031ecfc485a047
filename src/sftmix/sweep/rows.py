"""The rows of a sweep: an ablation's grid or list, and the keys that the command line sweeps over."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Parse = Callable[[list[str]], list[Any]]  # Hydra's parser of overrides


def expand(
    arguments: Sequence[str], params: Mapping[str, str], rows: Sequence[Sequence[str]], parse: Parse
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """What all rows have in common, and what tells each from the others, as overrides.

    Each listed row meets all of the file's grid and all that the command line sweeps over. A key that the command line
    sets takes the place of the file's.

    Args:
        arguments: overrides of the command line.
        params: the file's grid: values of each key, separated by commas.
        rows: the file's list.
        parse: Hydra's parser.

    Raises:
        HydraException: an override cannot be read.
    """
    given = parse(list(arguments))
    keys = {override.get_key_element() for override in given}
    common = [_text(override) for override in given if not override.is_sweep_override()]
    grid = [o for o in parse([f"{key}={value}" for key, value in params.items()]) if o.get_key_element() not in keys]
    grid += [override for override in given if override.is_sweep_override()]
    listed: list[list[str]] = [
        [_text(o) for o in parse(list(row)) if o.get_key_element() not in keys] for row in rows
    ] or [[]]
    product = itertools.product(*map(_values, grid))
    return tuple(common), list(dict.fromkeys((*row, *values) for values in product for row in listed))


def _text(override: Any) -> str:
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


def _values(override: Any) -> list[str]:
    """Each value that a key takes, as an override.

    Raises:
        HydraException: an interval, which has no values to go through.
    """
    from hydra.errors import HydraException

    if not override.is_sweep_override():
        return [_text(override)]
    if not override.is_discrete_sweep():
        raise HydraException(f"{override.input_line}: an interval has no values to go through, list them")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
