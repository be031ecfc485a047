"""The notebooks run on any finished run, and are kept without output."""

import json
import re
from pathlib import Path

import pytest

from paths import ROOT
from sftmix.artifacts.artifact import Artifact, making
from sftmix.artifacts.files import write_json
from sftmix.errors import InputError
from sftmix.provenance.runs import newest_run

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHOWN = {  # Images, and a text among the outputs of each notebook
    "01_data_map": (1, "least confident"),
    "02_reading_a_run": (2, "AUC"),
    "03_tables": (0, "against ntp-tiny-demo"),
    "04_own_training_loop": (0, "at the first step"),
}
LONGEST_LOOP = 40  # lines of code of the training loop


def code_of(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_kept_without_output(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_every_notebook_begins_with_the_choice_of_a_run():
    assert [path.stem for path in NOTEBOOKS] == list(SHOWN)
    (first,) = {code_of(path)[0] for path in NOTEBOOKS}
    assert re.search(r"^RUN = newest_run\(ROOT\)\.folder", first, re.MULTILINE)


def test_the_training_loop_is_short():
    (loop,) = [code for code in code_of(NOTEBOOKS[3]) if "fused_sftmix_loss(*" in code and "backward" in code]
    assert len([line for line in loop.splitlines() if line.strip()]) < LONGEST_LOOP


def test_the_newest_run_is_the_complete_run_that_was_completed_last(tmp_path):
    with pytest.raises(InputError, match="no finished run in it"):
        newest_run(tmp_path)
    for seed, completed in ((0, "2026-01-02"), (1, "2026-01-03"), (2, "2026-01-01")):
        artifact = Artifact(tmp_path, "sftmix-x", {"kind": "run", "seed": seed})
        with making(artifact) as folder:
            write_json(folder / "run.json", {"config": {}})
        manifest = json.loads((artifact.folder / "manifest.json").read_text())
        del manifest["files"], manifest["checksum"]
        write_json(artifact.folder / "manifest.json", {**manifest, "completed": completed})
    for suffix in (".partial", ".old"):  # newer, and not complete
        (tmp_path / f"sftmix-y{suffix}").mkdir()
        write_json(tmp_path / f"sftmix-y{suffix}" / "run.json", {"config": {}})
    assert newest_run(tmp_path).seed == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if p.stem[:2] in ("01", "03") else [], id=p.stem) for p in NOTEBOOKS],
)
def test_a_notebook_runs_on_a_finished_run(path, copy_of_run, monkeypatch):
    outputs = outputs_of(path, copy_of_run[1], monkeypatch)
    num_images, text = SHOWN[path.stem]
    assert sum("image/png" in out.get("data", {}) for out in outputs) == num_images
    assert text in json.dumps(outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_on_an_ntp_run_beside_an_unfinished_one(path, copy_of_run, monkeypatch):
    plan, root = copy_of_run
    target = root / plan.target.folder.name
    (target / "manifest.json").unlink()
    target.rename(target.with_name(f"{target.name}.partial"))
    outputs = outputs_of(path, root, monkeypatch)
    assert plan.reference.folder.name in json.dumps(outputs)


def outputs_of(path: Path, root: Path, monkeypatch) -> list:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("SFTMIX_ROOT", str(root))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(path.parent))
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]
