"""The notebooks run on a run's artifacts, and are kept without output."""

import json
import os
from pathlib import Path

import pytest

from paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_kept_without_output(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_the_notebook_takes_complete_runs_only(tmp_path, monkeypatch):
    names = ("sftmix-tiny-demo-1", "sftmix-tiny-demo-2.partial", "sftmix-tiny-demo-3.old")
    fields = {"sftmix": {"confidence": "c0"}, "confidence": {"checkpoints": "r0"}, "ntp": {}}
    for age, name in enumerate(("confidence-tiny-c0", "ntp-tiny-r0", *names, "confidence-x-c0.partial")):
        (tmp_path / name).mkdir()
        manifest = {"fields": fields[name.partition("-")[0]]}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "sftmix-tiny-demo-4").mkdir()  # unfinished: it has no manifest
    monkeypatch.setenv("SFTMIX_ROOT", str(tmp_path))
    (first, *_) = [c for c in json.loads(NOTEBOOKS[0].read_text())["cells"] if c["cell_type"] == "code"]
    found: dict = {}
    exec("".join(first["source"]), found)
    assert [found[name].name for name in ("target", "confidence", "baseline")] == [
        names[0],
        "confidence-tiny-c0",
        "ntp-tiny-r0",
    ]
    monkeypatch.setenv("SFTMIX_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match="no complete run"):
        exec("".join(first["source"]), {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_on_a_finished_run(path, small_run, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    config, _ = small_run
    monkeypatch.setenv("SFTMIX_ROOT", str(Path(config.root).resolve()))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(path.parent))
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 2
    assert any("AUC" in out.get("text", "") for out in outputs)
