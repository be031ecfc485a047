"""Artifacts: known by what they depend on, complete or absent, made once."""

import errno
import fcntl
import hashlib
import mmap
import multiprocessing
import os
import shutil
import subprocess
import time
from contextlib import suppress

import pytest

from sftmix import artifacts
from sftmix.artifacts import (
    Artifact,
    check_sums,
    content_hash,
    damaged,
    fingerprint,
    folder_of,
    forget_verified,
    making,
    note_drop,
    read_confidence,
    read_json,
    read_table,
    seal_part,
    tidy,
    verify,
    verify_inside,
    write_json,
    write_table,
)
from sftmix.errors import InputError
from sftmix.provenance.records import record_run
from sftmix.reports.runs import find_runs


def artifact(root, **fields):
    return Artifact(root, "a thing/of 2", fields)


def test_text_with_half_a_character_is_written_and_read_as_it_was(tmp_path):
    content = {"caf\udce9 \ud800": "\\ ü 😀"}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert "ü 😀" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_a_folder_of_files_whose_names_are_no_text_has_a_hash(tmp_path):
    (tmp_path / "model").mkdir()
    try:
        (tmp_path / "model" / os.fsdecode(b"caf\xe9.json")).write_text("{}")
    except OSError:
        pytest.skip("this file system has no such names")
    known = content_hash(tmp_path / "model", tmp_path / "cache.json")
    assert content_hash(tmp_path / "model", tmp_path / "cache.json") == known


def test_a_fingerprint_is_of_the_content_whatever_its_order():
    assert fingerprint({"a": 1, "b": [1.0, None]}) == fingerprint({"b": [1.0, None], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 8


def test_a_folder_has_a_readable_name_and_its_fields_in_its_manifest(tmp_path):
    one = artifact(tmp_path, mu=0.2)
    with making(one) as folder:
        write_json(folder / "x.json", 1)
    assert one.folder == tmp_path / f"a_thing_of_2-{one.fingerprint}"
    assert read_json(one.folder / "manifest.json")["fields"] == {"mu": 0.2}
    assert one.is_complete


def test_what_fails_is_not_there_and_is_begun_anew(tmp_path):
    one = artifact(tmp_path)
    with pytest.raises(RuntimeError), making(one) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert not one.folder.exists()
    with making(one) as folder:
        assert not (folder / "half").exists()
    assert one.is_complete
    assert not list(tmp_path.glob("*.partial"))


def test_what_can_be_resumed_keeps_what_was_left(tmp_path):
    one = artifact(tmp_path)
    with pytest.raises(KeyboardInterrupt), making(one, resume=True) as folder:
        (folder / "part").write_text("done")
        raise KeyboardInterrupt
    with making(one, resume=True) as folder:
        assert (folder / "part").read_text() == "done"


def test_what_is_there_is_not_made_again_unless_asked_for(tmp_path):
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


def old(file, seconds=3600):
    """Let a file have changed some time ago, as far as its modification time says."""
    then = time.time() - seconds
    os.utime(file, (then, then))


@pytest.fixture
def remembered(monkeypatch, tmp_path):
    """A function that tells whether the hash of a file was taken from the cache."""
    monkeypatch.setattr(artifacts, "RACY_NS", -(10**12))  # as if every file had been written long ago
    calls = []
    whole = hashlib.file_digest
    monkeypatch.setattr(artifacts.hashlib, "file_digest", lambda *a: (calls.append(1), whole(*a))[1])

    def hashed(file):
        calls.clear()
        found = content_hash(file, tmp_path / "cache.json")
        assert found == hashlib.sha256(file.read_bytes()).hexdigest(), "a stale hash"
        return not calls

    return hashed


def test_a_content_hash_follows_the_bytes_and_is_remembered(tmp_path, remembered):
    file = tmp_path / "f"
    file.write_text("abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", FIPS 180
    assert content_hash(file, tmp_path / "cache.json") == known
    assert remembered(file)
    assert remembered(file)


def _in_place(file, new):
    stat = file.stat()
    with file.open("r+b") as handle:
        handle.write(new)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _by_copy(file, new):
    stat = file.stat()
    other = file.with_name("other")
    other.write_bytes(new)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    subprocess.run(["cp", "-p", other, file], check=True)


def _by_rename(file, new):
    stat = file.stat()
    other = file.with_name("other")
    other.write_bytes(new)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)


def _by_tar(file, new):
    stat = file.stat()
    (file.parent / "packed").mkdir()
    other = file.parent / "packed" / file.name
    other.write_bytes(new)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    subprocess.run(["tar", "cf", "a.tar", "-C", "packed", file.name], check=True, cwd=file.parent)
    subprocess.run(["tar", "xf", "a.tar"], check=True, cwd=file.parent)


def _by_memory_map(file, new):
    stat = file.stat()
    with file.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as view:
        view[:] = new
        view.flush()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("edit", [_in_place, _by_copy, _by_rename, _by_tar, _by_memory_map])
def test_an_edit_with_the_same_size_and_mtime_is_noticed(tmp_path, remembered, edit):
    file = tmp_path / "f"
    file.write_bytes(b"abcdefgh")
    os.utime(file, ns=(10**18, 1_600_000_000 * 10**9))
    assert not remembered(file)
    assert remembered(file)
    before = file.stat()
    time.sleep(0.02)  # a tick of the file system's clock
    edit(file, b"abcdXfgh")
    after = file.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    assert not remembered(file)
    assert remembered(file)


def test_the_target_of_a_link_counts(tmp_path, remembered):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name, content in (("one", b"1111"), ("two", b"2222")):
        (blobs / name).write_bytes(content)
        os.utime(blobs / name, ns=(10**18, 10**18))
    link = tmp_path / "model.safetensors"
    link.symlink_to(blobs / "one")
    assert not remembered(link)
    assert remembered(link)
    _in_place(blobs / "one", b"1211")
    assert not remembered(link)
    link.unlink()
    link.symlink_to(blobs / "two")
    assert not remembered(link)


def test_the_hash_of_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    """A second write within the same tick of the clock would leave all times as they are (git's racy entries)."""
    file, cache = tmp_path / "f", tmp_path / "cache.json"
    file.write_bytes(b"1")
    old(file)  # the modification time can be set, the time of the change cannot
    content_hash(file, cache)
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"files": {}}', None])
def test_a_damaged_cache_of_hashes_is_ignored_and_written_again(tmp_path, remembered, content):
    file, cache = tmp_path / "f", tmp_path / "cache.json"
    file.write_bytes(b"1")
    assert not remembered(file)
    if content is None:  # one digit of a hash
        text = cache.read_text()
        digest = hashlib.sha256(b"1").hexdigest()
        cache.write_text(text.replace(digest, digest[:-1] + ("0" if digest[-1] != "0" else "1")))
    else:
        cache.write_bytes(content)
    assert not remembered(file)
    assert remembered(file)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, remembered, monkeypatch):
    file = tmp_path / "f"
    file.write_bytes(b"1")

    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(artifacts, "write_json", read_only)
    assert not remembered(file)
    assert not remembered(file)


def test_a_folders_hash_is_of_its_named_files(tmp_path):
    cache, folder = tmp_path / "cache.json", tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    before = content_hash(folder, cache, ("*.json",))
    (folder / "README.md").write_text("words")
    assert content_hash(folder, cache, ("*.json",)) == before
    (folder / "tokenizer.json").write_text("{}")
    assert content_hash(folder, cache, ("*.json",)) != before


def test_tables_come_back_as_they_were(tmp_path):
    columns = {"example_id": ["a", "b"], "nll": [0.1 + 0.2, 1e-300], "half": [None, "confident"]}
    write_table(tmp_path / "t.parquet", columns)
    assert read_table(tmp_path / "t.parquet") == columns
    assert [f.name for f in tmp_path.iterdir()] == ["t.parquet"]


def test_a_confidence_file_that_is_missing_is_told(tmp_path):
    with pytest.raises(InputError, match=r"confidence\.path=.*none\.parquet: no such file"):
        read_confidence(tmp_path / "none.parquet")


@pytest.fixture
def thing(tmp_path):
    """A complete artifact with files of several kinds."""
    one = artifact(tmp_path, mu=0.2)
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


def test_the_manifest_of_another_artifact_is_refused(thing, tmp_path):
    other = artifact(tmp_path, mu=0.3)
    with making(other):
        pass
    swap(thing.folder / "manifest.json", other.folder / "manifest.json")
    with pytest.raises(InputError, match="is the manifest of another artifact"), making(thing):
        pass


def test_an_artifact_of_an_earlier_version_is_read_with_a_line(thing, capsys):
    manifest = read_json(thing.folder / "manifest.json")
    del manifest["files"]
    write_json(thing.folder / "manifest.json", manifest)
    verify(thing.folder)
    verify(thing.folder)
    assert capsys.readouterr().out.count("made before checksums were kept, its files are not verified") == 1
    assert read_json(thing.folder / "run.json")["command"]


def _verified_here(folder, queue):
    calls = []
    artifacts.differs = lambda *_: calls.append(1) or ""
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


def test_a_sealed_folder_that_has_only_its_name_to_get_gets_it(tmp_path, monkeypatch):
    one = artifact(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "_rename", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
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


def test_a_full_disk_leaves_no_temporary_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    for write in (write_json, lambda path, _: write_table(path, {"a": [1]})):
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "x.json", {})
    assert not list(tmp_path.iterdir())


def test_a_title_that_is_too_long_for_a_file_system_is_cut(tmp_path):
    one = Artifact(tmp_path, "a" * 300, {"a": 1})
    with making(one) as folder:
        (folder / "x").write_text("x")
    assert one.is_complete
    assert one.folder != Artifact(tmp_path, "a" * 300, {"a": 2}).folder


@pytest.mark.parametrize("name", ["x.json", "x.parquet"])
@pytest.mark.parametrize("content", [b"", b"torn", b"\xff\xfe", b"PAR1PAR1"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: .*expected a (JSON|parquet) file"):
        (read_json if name == "x.json" else read_table)(tmp_path / name)
