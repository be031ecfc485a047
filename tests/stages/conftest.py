"""The data of a run of the embedded tokenizer, and runs that mode=check checks."""

import shutil

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


@pytest.fixture
def checked(compose, monkeypatch, tmp_path):
    """Check a run whose stages are replaced unless `stages=None`, and return the results."""
    from sftmix.evaluation.servers import judge_in_words
    from sftmix.stages import rehearsal

    def results(*overrides, stages=lambda _: "done"):
        if stages is not None:
            monkeypatch.setattr(rehearsal, "_rehearse_stages", stages)
        config = compose(f"root={tmp_path / 'runs'}", "mode=check", *overrides)
        return rehearsal.rehearse(config, {"judge": lambda: judge_in_words(config.judge)})

    return results


@pytest.fixture
def check(checked):
    """Return the texts of the failed checks by their titles."""

    def failed(*overrides, **options):
        found = {}
        for result in checked(*overrides, **options):
            if result.is_passed is False:
                found.setdefault(result.title, []).append(result.text)
        return found

    return failed


@pytest.fixture
def stories(shared, tmp_path):
    folder = tmp_path / "stories"
    shutil.copytree(shared / "models/stories260K", folder)
    for file in folder.iterdir():
        file.chmod(0o600)
    return folder
