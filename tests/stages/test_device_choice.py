"""Devices that a config means."""

import pytest

from sftmix.distributed.device import Device
from sftmix.errors import ConfigError, InputError
from sftmix.stages import device_choice
from sftmix.stages.device_choice import choose_device, planned_device


@pytest.fixture(autouse=True)
def torch_for_gpus(monkeypatch):
    """The installed torch can use GPUs, which have bfloat16."""
    monkeypatch.setattr(device_choice, "why_torch_has_no_gpu", lambda: None)
    monkeypatch.setattr(device_choice, "compute_capability", lambda: 9.0)


@pytest.mark.parametrize(
    ("gpus", "overrides", "expected"),
    [
        (0, [], Device("cpu", "32-true", "grouped")),
        (1, [], Device("gpu", "bf16-mixed", "packed")),
        (1, ["trainer=cpu"], Device("cpu", "32-true", "grouped")),
        (1, ["trainer.precision=32-true"], Device("gpu", "32-true", "packed")),
        (1, ["trainer=gpu"], Device("gpu", "bf16-mixed", "packed")),
        (8, [], Device("gpu", "bf16-mixed", "packed", "fsdp", 8)),
        (8, ["trainer=gpu"], Device("gpu", "bf16-mixed", "packed", "single", 1)),
        (8, ["trainer.devices=1"], Device("gpu", "bf16-mixed", "packed", "single", 1)),
        (8, ["trainer=ddp"], Device("gpu", "bf16-mixed", "packed", "ddp", 8)),
        (1, ["trainer=fsdp"], Device("gpu", "bf16-mixed", "packed", "fsdp", 1)),
        (0, ["trainer=fsdp", "trainer.devices=2"], Device("cpu", "32-true", "padded", "fsdp", 2)),
        (0, ["trainer=ddp", "trainer.devices=2"], Device("cpu", "32-true", "grouped", "ddp", 2)),
        (
            8,
            ["trainer.num_nodes=2", "trainer.rdzv_endpoint=a:1", "trainer.node_rank=1"],
            Device("gpu", "bf16-mixed", "packed", "fsdp", 8, 2),
        ),
        (0, ["trainer.precision=bf16-mixed"], Device("cpu", "bf16-mixed", "grouped")),
        (1, ["trainer.layout=padded"], Device("gpu", "bf16-mixed", "padded")),
        (0, ["trainer.layout=packed"], Device("cpu", "32-true", "packed")),
    ],
)
def test_the_gpu_is_taken_where_there_is_one(compose, monkeypatch, gpus, overrides, expected):
    monkeypatch.setattr(device_choice, "count_gpus", lambda: gpus)
    monkeypatch.setattr(device_choice, "num_cores", lambda: 2)
    assert choose_device(compose(*overrides).trainer) == expected


def test_a_gpu_that_is_not_there_is_an_error(compose, monkeypatch):
    monkeypatch.setattr(device_choice, "count_gpus", lambda: 0)
    with pytest.raises(ConfigError, match="no CUDA device is visible"):
        choose_device(compose("trainer=gpu").trainer)


@pytest.mark.parametrize(
    ("gpus", "overrides", "says"),
    [
        (4, ["trainer.devices=8"], "trainer.devices=8: there are 4 visible GPUs"),
        (0, ["trainer=ddp", "trainer.devices=3"], "trainer.devices=3: there are 2 CPU cores"),
        (0, ["trainer=fsdp"], "trainer.devices has no value: on a CPU trainer=fsdp needs trainer.devices=2"),
        (0, ["trainer.accumulate_whole=false"], "trainer.accumulate_whole=false: a setting of FSDP2, and with single"),
        (8, ["trainer.layout=grouped"], "trainer.layout=grouped: processes that share a model must run it equally"),
    ],
)
def test_devices_that_are_not_there_are_an_error(compose, monkeypatch, gpus, overrides, says):
    monkeypatch.setattr(device_choice, "count_gpus", lambda: gpus)
    monkeypatch.setattr(device_choice, "num_cores", lambda: 2)
    with pytest.raises(ConfigError, match=says):
        choose_device(compose(*overrides).trainer)


def test_quantized_weights_are_not_sharded(compose, monkeypatch):
    monkeypatch.setattr(device_choice, "count_gpus", lambda: 8)
    expected = Device("gpu", "bf16-mixed", "packed", "ddp", 8)
    assert choose_device(compose().trainer, "model.quantization=nf4") == expected
    with pytest.raises(ConfigError, match=r"strategy=fsdp: quantized weights are not sharded \(a setting\), choose"):
        choose_device(compose("trainer=fsdp").trainer, "a setting")


@pytest.mark.parametrize(("gpus", "precision"), [(0, "auto"), (1, "32-true")])
def test_flash_attention_without_a_gpu_in_half_precision_is_an_error(compose, monkeypatch, gpus, precision):
    monkeypatch.setattr(device_choice, "count_gpus", lambda: gpus)
    trainer = compose("trainer.attention=flash_attention_2", f"trainer.precision={precision}").trainer
    with pytest.raises(ConfigError, match=r"trainer\.attention=flash_attention_2: it needs a GPU and precision bf16"):
        choose_device(trainer)


def test_compiling_on_a_cpu_without_a_compiler_is_an_error(compose, monkeypatch):
    monkeypatch.setattr(device_choice, "count_gpus", lambda: 0)
    monkeypatch.setattr(device_choice.shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match=r"trainer\.compile=true: .* expected g\+\+ or clang\+\+, or CXX"):
        choose_device(compose("trainer.compile=true").trainer)
    monkeypatch.setattr(device_choice, "count_gpus", lambda: 1)
    with pytest.raises(ConfigError, match=r"trainer\.compile=true: .* expected gcc or clang or cc, or CC"):
        choose_device(compose("trainer.compile=true").trainer)


def test_bfloat16_is_only_used_where_the_gpu_has_it(compose, monkeypatch):
    monkeypatch.setattr(device_choice, "count_gpus", lambda: 1)
    monkeypatch.setattr(device_choice, "compute_capability", lambda: 7.5)
    assert choose_device(compose().trainer).precision == "32-true"
    with pytest.raises(ConfigError, match=r"bf16-mixed: the GPU has compute capability 7\.5, bfloat16 needs 8\.0; set"):
        choose_device(compose("trainer.precision=bf16-mixed").trainer)


@pytest.mark.parametrize("overrides", [[], ["trainer=gpu"]])
def test_a_torch_without_the_gpus_of_the_driver_is_an_error(compose, monkeypatch, overrides):
    monkeypatch.setattr(device_choice, "count_gpus", lambda: 2)
    monkeypatch.setattr(device_choice, "why_torch_has_no_gpu", lambda: "torch is a build for CPUs")
    with pytest.raises(InputError, match=r": 2 GPUs are visible, but torch is a build for CPUs; or set trainer=cpu$"):
        choose_device(compose(*overrides).trainer)
    assert choose_device(compose("trainer=cpu").trainer).accelerator == "cpu"


@pytest.mark.parametrize(
    ("overrides", "on_gpu", "expected"),
    [
        (["trainer.devices=8"], True, Device("gpu", "bf16-mixed", "packed", "fsdp", 8)),
        ([], True, Device("gpu", "bf16-mixed", "packed")),
        (["trainer=gpu", "trainer.compile=true"], True, Device("gpu", "bf16-mixed", "packed")),
        (["trainer=ddp", "trainer.devices=4"], True, Device("gpu", "bf16-mixed", "packed", "ddp", 4)),
        (["trainer=cpu"], True, Device("cpu", "32-true", "grouped")),
        ([], False, Device("cpu", "32-true", "grouped")),
    ],
)
def test_a_plan_takes_devices_that_this_machine_does_not_have(compose, monkeypatch, overrides, on_gpu, expected):
    monkeypatch.setattr(device_choice, "count_gpus", lambda: 0)
    monkeypatch.setattr(device_choice.shutil, "which", lambda _: None)
    assert planned_device(compose(*overrides).trainer, on_gpu=on_gpu) == expected
