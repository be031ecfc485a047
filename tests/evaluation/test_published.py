"""Published files are read from the given folder, or fetched once; changed contents are refused."""

import hashlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.published import Published, locate

CONTENT = b'{"question_id": 81}\n'


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def site(tmp_path):
    """An address that serves one file, and the list of what was asked for."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "question.jsonl").write_bytes(CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def test_a_file_of_the_given_folder_is_taken_as_it_is(tmp_path):
    (tmp_path / "q.jsonl").write_bytes(b"other")
    found = locate(Published("q.jsonl", "http://nowhere.invalid/q", "0" * 64), tmp_path, tmp_path / "cache")
    assert found == tmp_path / "q.jsonl"


def test_the_error_on_a_file_missing_in_the_folder_has_its_address(tmp_path):
    with pytest.raises(InputError, match=r"q\.jsonl is not in this folder \(published at http://x/q\)"):
        locate(Published("q.jsonl", "http://x/q"), tmp_path, tmp_path / "cache")


def test_a_file_is_fetched_once_and_kept(site, tmp_path):
    address, folder = site
    file = Published("q.jsonl", f"{address}/question.jsonl", hashlib.sha256(CONTENT).hexdigest())
    kept = locate(file, None, tmp_path / "cache")
    assert kept.read_bytes() == CONTENT
    (folder / "question.jsonl").unlink()
    assert locate(file, None, tmp_path / "cache") == kept


def test_other_content_than_it_had_is_refused_and_not_kept(site, tmp_path):
    file = Published("q.jsonl", f"{site[0]}/question.jsonl", "0" * 64)
    with pytest.raises(InputError, match=r"the content of .* has changed"):
        locate(file, None, tmp_path / "cache")
    assert not (tmp_path / "cache" / "q.jsonl").exists()


@pytest.mark.parametrize("place", ["/nothing.jsonl", None])
def test_the_error_on_a_failed_download_names_a_remedy(site, tmp_path, place):
    url = f"{site[0]}{place}" if place else "http://127.0.0.1:9/q"
    with pytest.raises(InputError, match=r"q\.jsonl: could not be fetched from .*bench=FOLDER names"):
        locate(Published("q.jsonl", url), None, tmp_path / "cache")
