"""Fingerprints, and hashes of input files that follow the bytes."""

import errno
import hashlib
import mmap
import os
import subprocess
import time

import pytest

from sftmix.artifacts import hashes
from sftmix.artifacts.hashes import content_hash, fingerprint


def test_a_fingerprint_is_of_the_content_whatever_its_order():
    assert fingerprint({"a": 1, "b": [1.0, None]}) == fingerprint({"b": [1.0, None], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 8


def test_a_folder_of_files_whose_names_are_no_text_has_a_hash(tmp_path):
    (tmp_path / "model").mkdir()
    try:
        (tmp_path / "model" / os.fsdecode(b"caf\xe9.json")).write_text("{}")
    except OSError:
        pytest.skip("this file system has no such names")
    known = content_hash(tmp_path / "model", tmp_path / "cache.json")
    assert content_hash(tmp_path / "model", tmp_path / "cache.json") == known


def old(file, seconds=3600):
    """Let a file have changed some time ago, as far as its modification time says."""
    then = time.time() - seconds
    os.utime(file, (then, then))


@pytest.fixture
def remembered(monkeypatch, tmp_path):
    """A function that tells whether the hash of a file was taken from the cache."""
    monkeypatch.setattr(hashes, "RACY_NS", -(10**12))  # as if every file had been written long ago
    calls = []
    whole = hashlib.file_digest
    monkeypatch.setattr(hashes.hashlib, "file_digest", lambda *a: (calls.append(1), whole(*a))[1])

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

    monkeypatch.setattr(hashes, "write_json", read_only)
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
