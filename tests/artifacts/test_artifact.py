"""Artifacts: known by what they depend on, complete or absent, made once."""

import fcntl
import multiprocessing
import os
import shutil
import time
from contextlib import suppress

import pytest

from sftmix.artifacts import artifact as artifact_module
from sftmix.artifacts.artifact import Artifact, folder_of, making, note_drop, tidy
from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import read_json, verify
from sftmix.errors import InputError
from sftmix.provenance.records import record_run
from sftmix.provenance.runs import find_runs


def artifact(root, **fields):
    return Artifact(root, "a thing/of 2", fields)


def test_a_folder_has_a_readable_name_and_its_fields_in_its_manifest(tmp_path):
    one = artifact(tmp_path, mu=0.2)
    with making(one) as folder:
        write_json(folder / "x.json", 1)
    assert one.folder == tmp_path / f"a_thing_of_2-{one.fingerprint}"
    assert read_json(one.folder / "manifest.json")["fields"] == {"mu": 0.2}
    assert one.is_complete


def test_a_failed_artifact_is_absent_and_made_from_the_start(tmp_path):
    one = artifact(tmp_path)
    with pytest.raises(RuntimeError), making(one) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert not one.folder.exists()
    with making(one) as folder:
        assert not (folder / "half").exists()
    assert one.is_complete
    assert not list(tmp_path.glob("*.partial"))


def test_a_resumed_artifact_keeps_what_was_left(tmp_path):
    one = artifact(tmp_path)
    with pytest.raises(KeyboardInterrupt), making(one, resume=True) as folder:
        (folder / "part").write_text("done")
        raise KeyboardInterrupt
    with making(one, resume=True) as folder:
        assert (folder / "part").read_text() == "done"


def test_a_complete_artifact_is_only_made_again_if_it_is_not_usable(tmp_path):
    one = artifact(tmp_path)
    with making(one) as folder:
        (folder / "x").write_text("first")
    with making(one) as folder:
        assert folder is None
    with pytest.raises(RuntimeError), making(one, usable=lambda folder: not (folder / "x").exists()):
        raise RuntimeError
    assert (one.folder / "x").read_text() == "first", "the old one stays until the new one is complete"
    with making(one, usable=lambda folder: not (folder / "x").exists()) as folder:
        (folder / "x").write_text("second")
    assert (one.folder / "x").read_text() == "second"
    assert {f.name for f in tmp_path.iterdir()} == {one.folder.name, ".locks"}


def _make_slowly(root, started):
    with making(artifact(root)) as folder:
        started.set()
        time.sleep(0.5)
        (folder / "by").write_text("the first")


def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path, capsys):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    other = context.Process(target=_make_slowly, args=(tmp_path, started))
    other.start()
    assert started.wait(60)
    with making(artifact(tmp_path)) as folder:
        assert folder is None
    other.join()
    assert (artifact(tmp_path).folder / "by").read_text() == "the first"
    assert "another process is making" in capsys.readouterr().out


def test_the_manifest_of_another_artifact_is_refused(thing, tmp_path):
    other = artifact(tmp_path, mu=0.3)
    with making(other):
        pass
    shutil.copy(other.folder / "manifest.json", thing.folder / "manifest.json")
    with pytest.raises(InputError, match="is the manifest of another artifact"), making(thing):
        pass


def test_what_a_kill_left_in_a_complete_artifact_is_removed_by_the_next_command(thing, tmp_path):
    folder = thing.folder
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/precious").write_text("")
    for name in ("states/step-1", "checkpoints.dropped/step-1", "model/model.partial"):
        (folder / name).mkdir(parents=True)
    (folder.with_name(f"{folder.name}.old") / "model").mkdir(parents=True)
    dead = [".metrics.json.4194000", "model/.config.json.4194001", "evaluation/.x.json.4194002"]
    (folder / "evaluation").mkdir()
    for name in dead:
        (folder / name).write_text("half")
    alive = folder / "evaluation/.y.json.1"
    before = set(folder.rglob("*"))
    with alive.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with making(thing) as made:
            assert made is None
        assert alive.exists(), "a living process is writing it"
    after = {p.relative_to(folder).as_posix() for p in before if p.exists()}
    assert not after & {"states", "checkpoints.dropped", "model/model.partial", *dead}
    assert not folder.with_name(f"{folder.name}.old").exists()
    tidy(folder)
    assert not alive.exists()
    (folder / "states").symlink_to(tmp_path / "elsewhere")
    tidy(folder)
    assert (tmp_path / "elsewhere/precious").exists()
    assert not (folder / "states").is_symlink()
    verify(folder)


def test_a_folder_of_another_program_is_not_tidied(tmp_path):
    (tmp_path / "app/states").mkdir(parents=True)
    (tmp_path / "app/.x.json.4194000").write_text("")
    (tmp_path / "app/y.partial").mkdir()
    for manifest in ('{"name": "app"}', "damaged"):
        (tmp_path / "app/manifest.json").write_text(manifest)
        assert folder_of("app", tmp_path, "run") == tmp_path / "app"
        assert {p.name for p in (tmp_path / "app").iterdir()} == {
            "states",
            "manifest.json",
            ".x.json.4194000",
            "y.partial",
        }


def test_reports_and_records_finish_the_tidying_too(thing):
    for meet in (
        lambda: folder_of(thing.folder.name, thing.root, "run"),
        lambda: find_runs(thing.root),
        lambda: record_run(thing.folder, thing.root / "records"),
    ):
        (thing.folder / "states").mkdir()
        with suppress(InputError):  # it is an artifact, but not a run
            meet()
        assert not (thing.folder / "states").exists()


def test_checkpoints_that_were_to_be_dropped_are_dropped_by_the_next_command(thing, tmp_path):
    scores = artifact(tmp_path, kind="confidence")
    note_drop(thing.folder, scores.folder.name)
    tidy(thing.folder)
    assert (thing.folder / "checkpoints").is_dir(), "the scores are not complete"
    with making(scores):
        pass
    tidy(thing.folder)
    assert not (thing.folder / "checkpoints").exists()
    assert {f.name for f in thing.folder.iterdir()} == {"manifest.json", "model", "run.json", "val.parquet"}


def test_temporary_files_of_killed_writes_do_not_become_part_of_an_artifact(tmp_path):
    one = artifact(tmp_path)
    with making(one) as folder:
        (folder / ".run.json.4194000").write_text("half")
        (folder / "model.partial").mkdir()
        (folder / "x").write_text("x")
    assert {f.name for f in one.folder.iterdir()} == {"manifest.json", "x"}


def test_a_sealed_folder_is_only_renamed(tmp_path, monkeypatch):
    one = artifact(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(artifact_module, "_rename", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt), making(one) as folder:
            (folder / "x").write_text("x")
    with making(one) as folder:
        assert folder is None
    assert (one.folder / "x").read_text() == "x"


def test_links_under_the_names_of_the_program_are_not_followed(tmp_path):
    one = artifact(tmp_path / "root")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("precious")
    one.root.mkdir()
    one.partial.symlink_to(elsewhere)
    for resume in (False, True):
        with pytest.raises(InputError, match=r"partial: a symbolic link.*remove the link"), making(one, resume=resume):
            pass
    one.partial.unlink()
    (one.root / ".locks").mkdir(exist_ok=True)
    lock = one.root / ".locks" / f"{one.folder.name}.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(elsewhere / "precious")
    with pytest.raises(InputError, match="lock: a symbolic link"), making(one):
        pass
    shutil.rmtree(one.root / ".locks")
    (one.root / ".locks").symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"\.locks: a symbolic link"), making(one):
        pass
    (one.root / ".locks").unlink()
    (tmp_path / f".x.json.{os.getpid()}").symlink_to(elsewhere / "precious")
    write_json(tmp_path / "x.json", 1)
    assert (elsewhere / "precious").read_text() == "precious"
    assert [f.name for f in elsewhere.iterdir()] == ["precious"]
    with making(one) as folder:
        assert folder is not None


def test_a_title_that_is_too_long_for_a_file_system_is_cut(tmp_path):
    one = Artifact(tmp_path, "a" * 300, {"a": 1})
    with making(one) as folder:
        (folder / "x").write_text("x")
    assert one.is_complete
    assert one.folder != Artifact(tmp_path, "a" * 300, {"a": 2}).folder
