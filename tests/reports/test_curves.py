"""report.py curves=: which runs are drawn, and what is refused."""

import shutil

import pytest

from sftmix.errors import InputError
from sftmix.reports.curves import compare_curves


def test_a_run_stands_for_all_seeds_of_its_recipe(copy_of_run, tmp_path):
    plan, root = copy_of_run
    run, baseline = root / plan.target.folder.name, root / plan.reference.folder.name
    text = compare_curves([run, baseline, run], root)
    assert text.splitlines()[:2] == ["sftmix-tiny-demo-mu0.2: 1 seed", "ntp-tiny-demo: 1 seed"]
    for form, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        assert (root / f"reports/curves-sftmix-tiny-demo-mu0.2.{form}").read_bytes().startswith(start)


def test_an_unfinished_run_is_drawn_as_it_is(copy_of_run):
    plan, root = copy_of_run
    partial = root / f"{plan.target.folder.name}.partial"
    shutil.move(root / plan.target.folder.name, partial)
    (partial / "manifest.json").unlink()
    assert "1 seed, not finished" in compare_curves([partial], root)


def test_what_has_logged_nothing_is_refused(copy_of_run, tmp_path):
    _, root = copy_of_run
    with pytest.raises(InputError, match=r"logs/metrics\.csv is missing or empty"):
        compare_curves([tmp_path], root)
    with pytest.raises(InputError, match=r"curves=\[\]: expected at least one run"):
        compare_curves([], root)
    (confidence,) = root.glob("confidence-*")
    with pytest.raises(InputError, match="of kind confidence, expected a run"):
        compare_curves([confidence], root)
