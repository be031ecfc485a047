"""Files of runs that cannot be read."""

import pytest

from sftmix.artifacts.tables import write_table
from sftmix.errors import InputError
from sftmix.provenance.runs import read_held_out, read_subsets


def test_files_that_are_something_else_are_told(tmp_path):
    assert read_subsets(tmp_path) == {}
    for read, name in ((read_held_out, "val.parquet"), (read_subsets, "split.parquet")):
        write_table(tmp_path / name, {"example_id": ["a"], "part": ["val"]})
        with pytest.raises(InputError, match=rf"{name}: no column"):
            read(tmp_path)
        (tmp_path / name).write_text("torn")
        with pytest.raises(InputError, match=rf"{name}: .*expected a parquet file"):
            read(tmp_path)
    with pytest.raises(InputError, match=r"val\.parquet: .*expected a parquet file"):
        read_held_out(tmp_path / "nowhere")
