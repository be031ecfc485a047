"""Callbacks and loggers are made from the config; an error names the entry in one line."""

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from sftmix.errors import InputError
from sftmix.stages.tracking import instantiate_entries


class Mine(Callback):
    """A user's own callback."""

    def __init__(self, text: str) -> None:
        """Keep the argument."""
        if not text:
            raise ValueError("no text\nat all")
        self.text = text


def test_entries_are_made_in_order_with_their_arguments(compose, tmp_path):
    config = compose("callbacks=[checkpoint,early_stopping]", "callbacks.early_stopping.patience=4")
    checkpoint, stopping = instantiate_entries("callbacks", config.callbacks, Callback, tmp_path)
    assert isinstance(checkpoint, ModelCheckpoint)
    assert isinstance(stopping, EarlyStopping)
    assert (checkpoint.dirpath, checkpoint.monitor, stopping.patience) == (str(tmp_path), "val/loss", 4)


def test_a_save_dir_of_null_is_the_folder_of_the_run(tmp_path):
    entry = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": None, "name": "more", "version": ""}
    (logger,) = instantiate_entries("logger", {"more": entry}, Logger, tmp_path)
    assert isinstance(logger, CSVLogger)
    assert Path(logger.log_dir) == tmp_path / "more"


def test_text_is_passed_as_it_is(tmp_path):
    (mine,) = instantiate_entries(
        "callbacks", {"mine": {"_target_": f"{__name__}.Mine", "text": "${x} \\${y}"}}, Callback, tmp_path
    )
    assert mine.text == "${x} \\${y}"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"_target_": "lightning.pytorch.callbacks.Nosuch"}, r"callbacks\.mine: .*Nosuch"),
        ({"_target_": "lightning.nosuch.Mine"}, r"callbacks\.mine: .*nosuch"),
        ({"_target_": "lightning.pytorch.callbacks.EarlyStopping", "x": 1}, r"callbacks\.mine: .*argument"),
        ({"_target_": f"{__name__}.Mine", "text": ""}, r"callbacks\.mine: no text at all"),
        ({"_target_": "pathlib.Path"}, r"callbacks\.mine: pathlib\.Path is not a Callback of Lightning"),
    ],
)
def test_an_entry_that_cannot_be_made_is_named(entry, says, tmp_path):
    with pytest.raises(InputError, match=says) as error:
        instantiate_entries("callbacks", {"mine": entry}, Callback, tmp_path)
    assert "\n" not in str(error.value)


def test_a_wrong_callback_is_reported_before_anything_is_tuned(run, tmp_path):
    with pytest.raises(InputError, match=r"callbacks\.mine: os\.getcwd is not a Callback of Lightning"):
        run("+callbacks.mine={_target_: os.getcwd}")
    assert not list(tmp_path.glob("ntp-*"))
