"""Make the callbacks and loggers of the config."""

from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate

from sftmix.config.schema import literal
from sftmix.errors import InputError

FOLDERS = ("save_dir", "dirpath")  # arguments of loggers and of ModelCheckpoint


def instantiate_entries(group: str, entries: dict[str, Any], kind: type[Any], folder: Path) -> list[Any]:
    """Return an object for each entry of `callbacks` or `logger`, in the order of the config.

    Args:
        entries: Arguments of each entry and its class, `_target_`. A `save_dir` or `dirpath` of null is the folder.
        kind: Class of all objects: Lightning's Callback or Logger.

    Raises:
        InputError: If an entry cannot be made, or is not of the class.
    """
    made = []
    for name, entry in entries.items():
        arguments = {key: str(folder) if key in FOLDERS and value is None else value for key, value in entry.items()}
        try:
            found = instantiate(literal(literal(arguments)), _convert_="all")  # Hydra resolves twice
        except (HydraException, ImportError) as error:
            cause = error.__cause__ or error
            raise InputError(f"{group}.{name}: {' '.join(str(cause).split())}") from error
        if not isinstance(found, kind):
            raise InputError(f"{group}.{name}: {entry['_target_']} is not a {kind.__name__} of Lightning")
        made.append(found)
    return made
