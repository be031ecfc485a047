"""Entries of `callbacks` and `logger` are checked before their classes are imported."""

import pytest

from sftmix.config.entries import result_changing
from sftmix.errors import ConfigError

MINE = "+callbacks.mine={_target_: torch.nn.Mine, x: 1}"  # any installed package


def test_choices_of_a_group_are_merged(compose):
    config = compose("callbacks=[early_stopping,checkpoint]", "callbacks.early_stopping.patience=4")
    assert list(config.callbacks) == ["early_stopping", "checkpoint"]
    assert config.callbacks["early_stopping"]["patience"] == 4
    assert config.callbacks["early_stopping"]["_target_"] == "lightning.pytorch.callbacks.EarlyStopping"
    assert compose("callbacks=[none,early_stopping]").callbacks.keys() == {"early_stopping"}
    assert compose("logger=[csv,wandb]", "logger.wandb.project=mine").logger["wandb"]["project"] == "mine"


def test_nothing_chosen_is_empty(compose):
    config = compose()
    assert (config.callbacks, config.logger, config.wandb) == ({}, {}, None)


def test_only_the_shipped_class_of_weights_and_biases_is_one_run_for_each_stage(compose):
    assert compose("logger=wandb").wandb["project"] == "sftmix"
    assert compose("logger=wandb", "logger.wandb._target_=torch.nn.Mine").wandb is None


def test_a_users_own_callback_and_lightnings_early_stopping_can_change_what_is_learned(compose):
    shipped = "callbacks=[early_stopping,checkpoint,learning_rate_monitor,mixup_diagnostics]"
    assert set(result_changing(compose(shipped, MINE).callbacks)) == {"early_stopping", "mine"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["+callbacks.mine=1"], "callbacks.mine=1: expected a mapping with _target_"),
        (["+callbacks.mine={x: 1}"], "callbacks.mine._target_=None: expected the dotted name of a class"),
        (["+callbacks.mine={_target_: Mine}"], "callbacks.mine._target_=Mine: expected the dotted name of a class"),
        (["+callbacks.mine={_target_: my_package.Mine}"], "callbacks.mine._target_=my_package.Mine: the package my_pa"),
        (
            ["+callbacks.mine={_target_: torch.nn.Mine, a: {_target_: no.X}}"],
            "callbacks.mine.a._target_=no.X: exp",
        ),
        (["+recipe._target_=a.B"], "recipe._target_: only entries of callbacks and logger name a class by _target_"),
        (["sweep=slurm", "+sweep.slurm.more={_target_: a.B}"], "sweep.slurm.more._target_: only entries of callbacks"),
        (["+callbacks._target_=a.B"], "callbacks._target_: only entries of callbacks and logger name a class"),
        (["logger=wandb", "logger.wandb.mode=some"], "logger.wandb.mode=some: expected one of online, offline, disa"),
        (["+logger.diagnose_every_n_steps=9"], "logger.diagnose_every_n_steps: this key is now callbacks.mixup_diagn"),
    ],
)
def test_an_entry_that_cannot_be_made_is_refused(compose, overrides, says):
    with pytest.raises(ConfigError) as error:
        compose(*overrides)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize("key", ["api_key", "token", "password", "settings.access_token"])
def test_a_secret_is_refused_and_the_message_names_the_variable_instead(compose, key):
    with pytest.raises(ConfigError, match="set the environment variable WANDB_API_KEY instead") as error:
        compose("logger=wandb", f"+logger.wandb.{key}=s3cr3t-value")
    assert "s3cr3t" not in str(error.value)


def test_an_address_with_a_password_and_the_value_of_a_secret_variable_are_refused(compose, monkeypatch):
    with pytest.raises(ConfigError, match=r"logger\.wandb\.url: the config takes no passwords") as error:
        compose("logger=wandb", "+logger.wandb.url='https://me:s3cr3t@host'")
    assert "s3cr3t" not in str(error.value)
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t-value")
    with pytest.raises(ConfigError, match=r"logger\.wandb\.notes: it contains the value of WANDB_API_KEY") as error:
        compose("logger=wandb", "+logger.wandb.notes='Mine: ${oc.env:WANDB_API_KEY}'")
    assert "s3cr3t" not in str(error.value)
    with pytest.raises(ConfigError, match=r"logger\.wandb\.headers: the config takes no keys or tokens") as error:
        compose("logger=wandb", "+logger.wandb.headers='Authorization: Bearer s3cr3t-token'")
    assert "s3cr3t" not in str(error.value)


def test_a_logger_of_lightning_requires_its_package(compose, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "lightning" or None)
    with pytest.raises(ConfigError, match=r"logger\.tensorboard: TensorBoardLogger requires the package tensorboard"):
        compose("logger=[csv,tensorboard]")
