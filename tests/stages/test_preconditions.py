"""What mode=check looks at before it runs the stages: each planted fault is named in one line."""

import subprocess

import pytest

from sftmix.config.entries import WANDB
from sftmix.errors import ConfigError, InputError
from sftmix.stages.preconditions import Remark, check_received, rehearsed_loggers


def local(folder, shared, *more):
    data = shared / "data/alpaca/alpaca_data.json"
    return [*f"model=local model.path={folder} model.lr=1e-3 data=alpaca data.path={data} data.limit=60".split(), *more]


def test_a_weights_file_that_is_cut_in_half_is_found(check, stories, shared):
    (file,) = stories.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    failed = check(*local(stories, shared))
    assert list(failed) == ["files"]
    assert f"model.path: {file} is cut off: {file.stat().st_size} bytes, expected " in failed["files"][0]


def test_a_pad_token_that_is_the_end_token_is_right_if_the_end_carries_loss(checked, stories, shared):
    results = checked(*local(stories, shared))
    assert all(result.is_passed for result in results)
    (template,) = [result.text for result in results if result.title == "template"]
    assert isinstance(template, Remark)
    assert "responses end with '</s>', padding is '</s>'" in template
    assert "the pad token is the end token, which is right here" in template
    examples = [result.text for result in results if result.title == "example"]
    assert len(examples) == 3
    assert all("then loss on " in text and text.endswith("</s>'") for text in examples)


def test_an_end_of_the_response_without_loss_is_found(check, stories, shared, monkeypatch):
    from sftmix.data import collate

    real = collate.collate_step

    def without_pad_tokens(step, encoded, weights, settings):  # the usual fault where padding is left out by token id
        batch = real(step, encoded, weights, settings)
        parts = [m._replace(weights=m.weights * (m.labels != settings.pad_token_id)) for m in batch.micro_batches]
        return batch._replace(micro_batches=tuple(parts))

    monkeypatch.setattr(collate, "collate_step", without_pad_tokens)
    failed = check(*local(stories, shared))
    assert "'</s>' at its end carries no loss, expected loss on each token of the response" in failed["example"][0]


def test_data_in_which_every_response_loses_its_end_is_found(check, stories, shared, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"instruction": "Count from {k}.", "output": "{"one and " * 99}"}}\n' for k in range(8)))
    own = f"data=own data.path={rows} data.overlong=truncate data.max_seq_len=160".split()
    failed = check(*local(stories, shared)[:3], *own)
    assert list(failed) == ["data"]
    assert "data.overlong=truncate: all of 8 responses lose their end, expected some that keep it" in failed["data"][0]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "data.template=tokenizer: the tokenizer has no chat template, expected alpaca, "),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "no special token ends the response"),
        ("{{ raise_exception('no such role') }}", "the chat template cannot be rendered: no such role"),
        ("{{ messages[0]['content'", "the chat template cannot be rendered, line 1: "),
        (
            "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}Answer {{ messages "
            "| length }}:{% endif %}",
            "what it renders with the response does not continue what it renders for generation",
        ),
    ],
)
def test_a_template_that_does_not_fit_is_found(check, stories, shared, tmp_path, template, says):
    file = tmp_path / "own.jinja"
    file.write_text(template or "")
    failed = check(*local(stories, shared, f"data.template={'tokenizer' if template is None else file}"))
    assert list(failed) == ["template"]
    assert says in failed["template"][0]


def test_special_tokens_of_a_template_that_the_tokenizer_splits_are_a_remark(checked, stories, shared):
    results = checked(*local(stories, shared, "data.template=llama3"))
    (template,) = [result for result in results if result.title == "template"]
    assert template.is_passed
    assert isinstance(template.text, Remark)
    assert "<|start_header_id|> is split into 14 tokens, <|end_header_id|> is split into " in template.text
    assert "expects data.template=tokenizer or the template of its family" in template.text


@pytest.mark.parametrize("place", ["root", "callbacks.checkpoint.dirpath", "logger.own.save_dir"])
def test_an_output_place_that_cannot_be_written_is_found_with_other_faults(check, tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    own = ["callbacks=checkpoint", "+logger.own._target_=lightning.pytorch.loggers.CSVLogger", "+logger.own.save_dir=x"]
    failed = check("trainer=gpu", *(own if place != "root" else []), f"{place}={tmp_path / 'file/runs'}")
    assert failed["root" if place == "root" else "output"] == [
        f"{place}={tmp_path / 'file/runs'}: cannot be written (Not a directory), expected a folder on a writable disk "
        "with free space"
    ]
    assert "device" in failed


def test_a_disk_without_space_or_that_is_read_only_is_found(check, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        full = check(f"root={disk}")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        read_only = check(f"root={disk}/runs")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert f"root={disk}: cannot be written (No space left on device)" in full["root"][0]
    assert f"root={disk}/runs: cannot be written (Read-only file system)" in read_only["root"][0]


def test_hardware_that_no_table_has_is_refused_or_a_remark(check, checked, compose, monkeypatch):
    with pytest.raises(ConfigError, match=r"^plan\.gpu=b300: expected one of h100, h200, "):
        compose("mode=check", "plan.gpu=b300")
    monkeypatch.setattr("sftmix.stages.device_choice.count_gpus", lambda: 1)
    monkeypatch.setattr("sftmix.stages.device_choice.why_torch_has_no_gpu", lambda: "its driver is old, update it")
    assert "1 GPUs are visible, but its driver is old" in check("trainer=gpu")["device"][0]
    monkeypatch.setattr("sftmix.stages.device_choice.why_torch_has_no_gpu", lambda: None)
    monkeypatch.setattr("sftmix.stages.device_choice.compute_capability", lambda: 9.0)
    monkeypatch.setattr("sftmix.stages.preconditions.gpu_names", lambda: ["NVIDIA Unknown 1"])
    (device,) = [result for result in checked("data.demo.num_examples=40") if result.title == "device"]
    assert device.text == Remark(
        "one GPU, precision bf16-mixed, NVIDIA Unknown 1: NVIDIA Unknown 1 is not in "
        "src/sftmix/estimate/hardware.py, so no model FLOPs utilization is logged"
    )


def test_a_logger_that_received_nothing_is_named(tmp_path):
    loggers = {"own": {"_target_": "own.Lines"}, "wandb": {"_target_": WANDB, "mode": "offline"}}
    (tmp_path / "loggers/own").mkdir(parents=True)
    (tmp_path / "loggers/own/lines.txt").write_text("")
    with pytest.raises(InputError, match=r"^logger\.own: nothing was written in the rehearsal"):
        check_received(loggers, tmp_path / "loggers", tmp_path)
    (tmp_path / "loggers/own/lines.txt").write_text("a loss")
    with pytest.raises(InputError, match=r"^logger\.wandb: nothing was written in the rehearsal"):
        check_received(loggers, tmp_path / "loggers", tmp_path)
    loggers["wandb"]["mode"] = "disabled"
    check_received(loggers, tmp_path / "loggers", tmp_path)


def test_loggers_write_into_the_rehearsal_or_are_not_started(compose, tmp_path):
    config = compose("logger=wandb", "logger.wandb.mode=online")
    config.logger["comet"] = {"_target_": "own.Service"}
    config.logger["mlflow"] = {"_target_": "own.MLFlow", "tracking_uri": "http://server", "save_dir": "given"}
    assert rehearsed_loggers(config, tmp_path) == {
        "wandb": {**config.logger["wandb"], "mode": "offline"},
        "mlflow": {"_target_": "own.MLFlow", "tracking_uri": None, "save_dir": str(tmp_path / "mlflow")},
    }
