"""The page of a run: its sections, what may run in it, and what is shown of damaged and unfinished runs."""

import base64
import hashlib
import json
import re
import shutil

import pytest

from resealed import write_json
from sftmix.artifacts.files import open_lock, try_lock
from sftmix.config.schema import to_dict
from sftmix.errors import InputError
from sftmix.reports.run_page.page import Origin, write_page
from sftmix.reports.summary import summarize

HOSTILE = "</dd><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\u05e9\u05dc\u05d5\u05dd"


@pytest.fixture
def origin(small_run):
    return Origin(lambda folder: f"python train.py --config-file {folder}", to_dict(small_run[0]))


def page_of(folder, root, origin):
    written = write_page(folder, root, origin)
    return written, written.file.read_text()


def test_a_run_has_every_section_and_its_map_beside_it(copy_of_run, origin):
    plan, root = copy_of_run
    run = root / plan.target.folder.name
    written, html = page_of(run, root, origin)
    assert written.file == root / f"reports/{run.name}.html"
    assert 'class="problem"' not in html
    link = re.search(r'href="([^"#]+-map\.html)"', html).group(1)
    assert (root / "reports" / link).is_file()
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"{metrics['val_loss']:.3f}" in html
    assert f"{metrics['val_loss_before']:.3f}" in html
    for answer in json.loads((run / "answers.json").read_text()):
        assert answer["response"][:20] in html.replace("&#39;", "'").replace("&#34;", '"')
    assert html.count("data:image/") >= 3
    assert "python train.py --config-file" in html


def test_nothing_but_the_style_and_the_images_of_the_page_is_allowed(copy_of_run, origin):
    plan, root = copy_of_run
    _, html = page_of(root / plan.target.folder.name, root, origin)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html).group(1).replace("&#39;", "'")
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:")
    assert "<script" not in html


def test_texts_stay_texts(copy_of_run, origin):
    plan, root = copy_of_run
    run = root / plan.target.folder.name
    answers = [{"instruction": HOSTILE, "response": HOSTILE, "answer": HOSTILE, "group": HOSTILE}]
    write_json(run / "answers.json", answers)
    _, html = page_of(run, root, origin)
    assert "<script" not in html
    assert "<img src=x" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 3
    assert "Before tuning" not in html, "a run of an earlier version has no such answers"


def test_a_run_without_scores_has_no_map(copy_of_run, origin):
    plan, root = copy_of_run
    for folder in root.glob("confidence-*"):
        shutil.rmtree(folder)
    _, html = page_of(root / plan.reference.folder.name, root, origin)
    assert "Held-out loss" in html
    assert "-map.html" not in html


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "answers.json", "census.json", "val.parquet"])
def test_a_damaged_file_is_named_and_the_other_sections_are_shown(copy_of_run, origin, name):
    plan, root = copy_of_run
    run = root / plan.target.folder.name
    (run / name).write_bytes(b"{")
    written, html = page_of(run, root, origin)
    assert name in written.in_words
    assert 'class="problem"' in html
    assert "data:image/" in html, "the curves do not depend on it"


def test_a_run_whose_data_and_scores_are_gone_has_a_page(copy_of_run, origin):
    plan, root = copy_of_run
    for folder in (root / "data", *root.glob("confidence-*"), root / plan.reference.folder.name):
        shutil.rmtree(folder)
    _, html = page_of(root / plan.target.folder.name, root, origin)
    assert 'class="problem"' in html
    assert "Held-out loss" in html


def test_an_unfinished_run_is_shown_as_far_as_it_is(copy_of_run, origin):
    plan, root = copy_of_run
    partial = root / f"{plan.target.folder.name}.partial"
    (root / plan.target.folder.name).rename(partial)
    (partial / "manifest.json").unlink()
    written, html = page_of(partial, root, origin)
    assert written.file.name == f"{plan.target.folder.name}.html"
    assert "not finished: interrupted" in written.in_words
    assert "data:image/" in html


def test_a_run_that_a_process_is_making_is_said_to_be_made(copy_of_run, origin):
    plan, root = copy_of_run
    run = root / plan.target.folder.name
    (run / "manifest.json").unlink()
    run.rename(root / f"{run.name}.partial")
    (root / ".locks").mkdir(exist_ok=True)
    with open_lock(root / ".locks" / f"{run.name}.lock") as handle:
        assert try_lock(handle)
        written, html = page_of(root / f"{run.name}.partial", root, origin)
    assert "a process is making it now" in written.in_words
    assert html.count('class="problem"') == 1
    assert re.findall('<section id="(.*?)"', html) == ["curves"]


def test_the_losses_are_those_that_the_program_prints(copy_of_run, origin):
    plan, root = copy_of_run
    run, baseline = root / plan.target.folder.name, root / plan.reference.folder.name
    _, html = page_of(run, root, origin)
    printed = summarize(run, None, baseline)
    shown = re.search(r"<h3>Held-out loss</h3>.*?</table>", html, re.DOTALL).group()
    for subset in ("all", "confident subset", "unconfident subset"):
        (line,) = [line for line in printed.splitlines() if line.startswith(f"  {subset}  ")]
        (row,) = re.findall(rf"<tr[^>]*><th>{subset}</th>(.*?)</tr>", shown)
        cells = [cell for cell in re.findall(r"<td>(.*?)</td>", row) if cell]
        assert " ".join(cells) == " ".join(line.removeprefix(f"  {subset}").split())


def test_an_ntp_run_is_compared_with_nothing_and_has_the_map_of_what_it_scored(copy_of_run, origin):
    plan, root = copy_of_run
    written, html = page_of(root / plan.reference.folder.name, root, origin)
    assert 'class="problem"' not in html
    assert "difference [95% interval]" not in html
    assert "confident subset" not in html
    assert f"{written.file.stem}-map.html" in html


def test_a_run_without_held_out_examples_says_so(copy_of_run, origin):
    plan, root = copy_of_run
    run = root / plan.target.folder.name
    metrics = json.loads((run / "metrics.json").read_text())
    write_json(run / "metrics.json", {**metrics, "val_examples": 0})
    _, html = page_of(run, root, origin)
    assert "No held-out loss: nothing was held out." in html
    assert 'class="problem"' not in html


def test_adapters_changed_settings_and_rows_that_were_lost_are_shown(copy_of_run, origin):
    plan, root = copy_of_run
    run = root / plan.target.folder.name
    record = json.loads((run / "run.json").read_text())
    record["config"]["model"]["lora"] = {"rank": 7}
    record["cost"]["trained_parameters"] = 12
    write_json(run / "run.json", record)
    census = json.loads((run / "census.json").read_text())
    census["dropped"] = {"empty response": {"count": 2, "places": [HOSTILE, "row 9"]}}
    write_json(run / "census.json", census)
    _, html = page_of(run, root, origin)
    assert "12 of them trained, LoRA of rank 7" in html
    changed = html[html.index("Settings that differ") : html.index("<details>")]
    assert "<th>model.lora.rank</th><td>7</td>" in changed
    assert "<th>recipe.mixup.mu</th>" not in changed, "as in the defaults"
    assert "empty response" in html
    assert "row 9" in html
    assert "<script" not in html


@pytest.mark.parametrize("text", ["", " \n", "x" * 1_000_000, "\ud800 \x00"])
def test_a_text_of_any_kind_is_shown(copy_of_run, origin, text):
    plan, root = copy_of_run
    run = root / plan.target.folder.name
    write_json(run / "answers.json", [dict.fromkeys(("instruction", "response", "before", "answer", "group"), text)])
    written, html = page_of(run, root, origin)
    assert html.count("<em>(empty)</em>") == (0 if text.strip() else 3)
    assert ("... (1,000,000 characters)" in html) == (len(text) > 100)
    assert written.file.stat().st_size < 1_500_000


def test_what_is_not_a_run_and_a_wrong_output_are_refused(copy_of_run, origin, tmp_path):
    plan, root = copy_of_run
    (confidence,) = root.glob("confidence-*")
    with pytest.raises(InputError, match="of kind confidence, expected a run"):
        write_page(confidence, root, origin)
    unfinished = confidence.rename(f"{confidence}.partial")
    for other in (unfinished, root / "data"):
        with pytest.raises(InputError, match="is not a run"):
            write_page(other, root, origin)
    run = root / plan.target.folder.name
    with pytest.raises(InputError, match="is inside"):
        write_page(run, root, origin, run / "page.html")
    with pytest.raises(InputError, match="is a folder"):
        write_page(run, root, origin, tmp_path)
