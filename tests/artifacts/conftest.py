"""A complete artifact with files of several kinds."""

import pytest

from sftmix.artifacts.artifact import Artifact, making
from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import forget_verified
from sftmix.artifacts.tables import write_table


@pytest.fixture
def thing(tmp_path):
    """A complete artifact with files of several kinds."""
    one = Artifact(tmp_path, "a thing/of 2", {"mu": 0.2})
    with making(one) as folder:
        write_json(folder / "run.json", {"command": ["train.py", "recipe=ntp", "data.path=a b.json"]})
        write_table(folder / "val.parquet", {"nll": [1.0, 2.0]})
        for part in ("model", "checkpoints/step-1"):
            (folder / part).mkdir(parents=True)
            (folder / part / "model.safetensors").write_bytes(part.encode() * 10)
        (folder / "model/tokenizer.json").write_text("{}")
    forget_verified()
    yield one
    forget_verified()
