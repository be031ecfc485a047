"""The data of a run of the embedded tokenizer."""

import pytest

from prepared import write_rows
from sftmix.stages.context import RunContext


@pytest.fixture
def context(compose, tmp_path):
    """A function that prepares the data of a configuration under the embedded tokenizer."""
    write_rows(tmp_path / "rows.jsonl")

    def prepared(*overrides, path=tmp_path / "rows.jsonl"):
        return RunContext(
            compose(
                "data=own",
                f"data.path={path}",
                "data.max_seq_len=128",
                "data.val_fraction=0.2",
                "model.init.vocab_size=400",
                "trainer.progress_bar=false",
                f"root={tmp_path / 'runs'}",
                *overrides,
            )
        )

    return prepared
