"""Training curves: what is read from the metrics of a run, and what each panel draws."""

import pytest

from sftmix.training.curves import GAP, PANELS, Line, draw_curves, panels_of, read_curves, write_curves

METRICS = """\
epoch,step,train/lr,train/ntp_loss,val/loss,val/loss_confident,val/loss_unconfident
0,0,0.1,3.0,,,
0,1,0.2,2.5,,,
0,1,,,2.4,2.0,2.9
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/metrics.csv").write_text(METRICS)
    (tmp_path / "metrics.json").write_text('{"val_loss_before": 4.0}')
    return tmp_path


def test_steps_are_counted_from_one_and_the_held_out_loss_starts_before_them(folder):
    lines = read_curves(folder)
    assert lines["train/ntp_loss"] == Line([1, 2], [3.0, 2.5])
    assert lines["val/loss"] == Line([0, 2], [4.0, 2.4])
    assert lines[GAP].steps == [2]
    assert lines[GAP].values == pytest.approx([0.9])


def test_a_run_that_is_being_written_is_read_up_to_its_last_whole_row(folder):
    with (folder / "logs/metrics.csv").open("a") as handle:
        handle.write("0")
    (folder / "metrics.json").unlink()
    assert read_curves(folder)["val/loss"] == Line([2], [2.4])


def test_a_run_without_metrics_has_no_lines_and_no_image(tmp_path):
    assert read_curves(tmp_path) == {}
    write_curves(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_panels_with_metrics_are_drawn(folder):
    figure = draw_curves({"run": [read_curves(folder)]})
    titles = [axes.get_title() for axes in figure.axes]
    expected = [panel.title for panel in PANELS if {"train/ntp_loss", "train/lr", "val/loss", GAP} & set(panel.metrics)]
    assert titles == expected
    assert [len(axes.get_lines()) for axes in figure.axes] == [1, 3, 1, 1]


def test_seeds_are_a_mean_with_a_band_over_the_steps_that_all_have(folder):
    lines = read_curves(folder)
    other = {"train/ntp_loss": Line([1, 2, 3], [5.0, 3.5, 9.0])}
    (axes, *_) = draw_curves({"run": [lines, other]}).axes
    (mean,) = axes.get_lines()
    assert mean.get_xydata().tolist() == [[1.0, 4.0], [2.0, 3.0]]
    (band,) = axes.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert {(1.0, 3.0), (1.0, 5.0), (2.0, 2.5), (2.0, 3.5)} <= corners


def test_recipes_differ_in_color_and_metrics_in_style(folder):
    lines = read_curves(folder)
    figure = draw_curves({"one": [lines], "other": [lines, lines]})
    held_out = next(axes for axes in figure.axes if axes.get_title() == "Held-out loss")
    looks = [(line.get_color(), line.get_linestyle()) for line in held_out.get_lines()]
    assert len(set(looks)) == 6
    assert len({color for color, _ in looks}) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one, 1 seed", "other, 2 seeds"]


def test_the_image_is_written_into_the_logs(folder):
    write_curves(folder)
    assert (folder / "logs/curves.png").read_bytes().startswith(b"\x89PNG")


def test_other_validation_files_share_a_panel(folder):
    (folder / "logs/metrics.csv").write_text("step,val_a/loss,val_a/loss_confident,val_b.c/loss\n1,2.0,1.5,3.0\n")
    (folder / "metrics.json").write_text('{"val_sets": {"a": {"loss_before": 4.0}, "b.c": {"loss_before": null}}}')
    lines = read_curves(folder)
    assert lines["val_a/loss"] == Line([0, 2], [4.0, 2.0])
    assert lines["val_b.c/loss"] == Line([2], [3.0])
    (panel,) = panels_of({"run": [lines]})
    assert panel.metrics == {"val_a/loss": "a", "val_a/loss_confident": "a confident", "val_b.c/loss": "b.c"}
    assert len(draw_curves({"run": [lines]}).axes[0].get_lines()) == 3
