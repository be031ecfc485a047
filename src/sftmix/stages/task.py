"""What a stage is to do, as it is handed to processes of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Task(NamedTuple):
    """What is to be done: a stage, where it writes, and what it reads of the stages before.

    Attributes:
        stage: reference, ntp (the target is an NTP run), confidence or target.
        folder: where it writes.
        fields: what its content depends on.
        inputs: paths of what it reads.
    """

    stage: str
    folder: Path
    fields: Mapping[str, Any]
    inputs: tuple[Path, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**self._asdict(), "folder": str(self.folder), "inputs": [str(path) for path in self.inputs]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Task":
        """The task that `as_dict` wrote."""
        inputs = tuple(map(Path, content["inputs"]))
        return cls(content["stage"], Path(content["folder"]), content["fields"], inputs)
