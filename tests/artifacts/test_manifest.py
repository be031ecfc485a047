"""Checksums: damage is one line with the file and the command that makes it again."""

import multiprocessing

import pytest

from sftmix.artifacts import manifest
from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import check_sums, damaged, forget_verified, read_json, seal_part, verify, verify_inside
from sftmix.artifacts.tables import read_table
from sftmix.errors import InputError


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def swap(one, other):
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: flip(f / "model/model.safetensors"), "model/model.safetensors: is damaged: its content does not"),
        (lambda f: (f / "model/model.safetensors").write_bytes(b""), "model.safetensors: has 0 bytes, expected 50"),
        (lambda f: (f / "model/model.safetensors").write_bytes(b"model"), "has 5 bytes, expected 50"),
        (lambda f: (f / "model/tokenizer.json").unlink(), "model/tokenizer.json: is missing"),
        (lambda f: (f / "model/added_tokens.json").write_text("{}"), "added_tokens.json: not a file of the artifact"),
        (lambda f: swap(f / "model/model.safetensors", f / "checkpoints/step-1/model.safetensors"), "bytes, expected"),
        (lambda f: flip(f / "manifest.json"), "manifest.json: is"),
        (lambda f: (f / "manifest.json").write_text(""), "manifest.json: is empty, expected a JSON file"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json: is damaged: expected a JSON object"),
        (
            lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text().replace("0.2", "0.3")),
            "manifest.json: is damaged: its content does not match its checksum",
        ),
        (lambda f: write_json(f / "manifest.json", {"fingerprint": "0" * 8}), "manifest.json: lists no files"),
    ],
)
def test_damage_of_an_artifact_is_one_line_with_the_file_and_the_command(thing, damage, says):
    verify(thing.folder)
    forget_verified()
    damage(thing.folder)
    with pytest.raises(InputError) as error:
        verify(thing.folder)
    assert says in str(error.value)
    if "not a file" not in says:
        assert f"delete {thing.folder} and run `python train.py recipe=ntp 'data.path=a b.json'` again" in str(
            error.value
        )


def test_the_command_for_a_damaged_file_names_the_folder_that_holds_the_artifact_now(tmp_path):
    words = ["train.py", f"root={tmp_path / 'runs'}", "recipe=ntp"]
    folder = tmp_path / "runs" / "x-12345678"
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"command": words})
    assert f"run `python {' '.join(words)}` again" in str(damaged(folder / "manifest.json", "is damaged"))
    (tmp_path / "runs").rename(tmp_path / "moved")
    folder = tmp_path / "moved" / "x-12345678"
    line = f"run `python train.py recipe=ntp root={tmp_path / 'moved'}` again"
    assert line in str(damaged(folder / "manifest.json", "is damaged"))


def test_only_the_part_that_is_read_is_verified(thing):
    flip(thing.folder / "checkpoints/step-1/model.safetensors")
    verify(thing.folder, "model")
    verify_inside(thing.folder / "model")
    with pytest.raises(InputError, match=r"step-1/model\.safetensors: is damaged"):
        verify_inside(thing.folder / "checkpoints/step-1")
    with pytest.raises(InputError, match=r"step-1/model\.safetensors: is damaged"):
        verify_inside(thing.folder / "checkpoints/step-1/model.safetensors")


@pytest.mark.parametrize("name", ["run.json", "val.parquet"])
def test_a_small_file_is_verified_whenever_it_is_read(thing, name):
    read = read_json if name == "run.json" else read_table
    read(thing.folder / name)
    flip(thing.folder / name)
    with pytest.raises(InputError, match=rf"{name}: is damaged: its content does not match its checksum; delete"):
        read(thing.folder / name)


def test_what_is_written_after_an_artifact_is_complete_does_not_matter(thing):
    for name in ("evaluation/medical.json", "wandb/run.json", "model/.cache/x.json", "model/README.md"):
        (thing.folder / name).parent.mkdir(exist_ok=True, parents=True)
        (thing.folder / name).write_text("{}")
    verify(thing.folder)
    assert read_json(thing.folder / "evaluation/medical.json") == {}


def _verified_here(folder, queue):
    calls = []
    manifest.differs = lambda *_: calls.append(1) or ""
    verify(folder)
    queue.put(len(calls))


def test_a_child_process_does_not_verify_again_what_its_parent_has_verified(thing):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for expected in (5, 0):
        child = context.Process(target=_verified_here, args=(thing.folder, queue))
        child.start()
        assert queue.get(timeout=60) == expected
        child.join()
        verify(thing.folder)


def test_a_finished_checkpoint_of_an_unfinished_run_is_verified(tmp_path):
    partial = tmp_path / "ntp-00000000.partial"
    (partial / "checkpoints/step-1").mkdir(parents=True)
    (partial / "checkpoints/step-1/model.safetensors").write_bytes(b"weights")
    seal_part(partial / "checkpoints/step-1")
    check_sums(partial, keep=True)
    flip(partial / "checkpoints/step-1/model.safetensors")
    with pytest.raises(InputError, match=rf"is damaged: .*; delete {partial} and run the same command again"):
        check_sums(partial)
