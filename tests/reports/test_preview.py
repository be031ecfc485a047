"""The preview shows what is trained on, and nothing in it controls the terminal."""

import io
import json
import re

import pytest
from rich.console import Console

from sftmix.artifacts.manifest import read_json
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.reports.preview import END, RESPONSE, SPECIAL, measure_batches, pieces_of, prepare_preview, show, spread
from sftmix.terminal import visible

ATTACK = "\x1b[31mred\x1b[0m \x07 \u202eesrever\u202c \r over \x9b2J zero\u200bwidth \u2028 \x00"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 😀\n\tTab", "plain ü 😀\n\\tTab"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\r\nb", "a\\r\nb"),
        ("\u202eabc", "\\u202eabc"),
        ("\x9b2J\u200b\u2028\x00", "\\x9b2J\\u200b\\u2028\\x00"),
        ("[bold]no markup[/bold]", "[bold]no markup[/bold]"),
    ],
)
def test_what_a_terminal_would_act_on_is_written_out(text, shown):
    assert visible(text) == shown


@pytest.fixture
def preview(compose, tmp_path):
    """A function that previews rows under the embedded tokenizer: (the preview, what was printed)."""

    def previewed(rows, *overrides, styled=False):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = compose(
            "data=own",
            f"data.path={tmp_path / 'rows.jsonl'}",
            "data.max_seq_len=256",
            "model.init.vocab_size=400",
            "trainer=cpu",
            "trainer.progress_bar=false",
            f"root={tmp_path / 'runs'}",
            *overrides,
        )
        found = prepare_preview(config)
        out = io.StringIO()
        console = Console(file=out, width=110, force_terminal=styled, color_system="truecolor" if styled else None)
        show(found, 3, console)
        return found, out.getvalue()

    return previewed


ROWS = [{"instruction": f"Say {i}.", "output": f"It is {i}, {'word ' * (i % 5)}."} for i in range(40)]


def test_an_example_is_shown_as_it_is_trained_on(preview):
    found, printed = preview(ROWS)
    assert "40 of 40 rows: instruction, input (where there is one) and output" in printed
    assert printed.count("prompt tokens,") == 3
    encoded = found.encoded.train[0]
    example = found.context.data.examples[int(found.encoded.train.lines[0])]
    assert f"rows.jsonl row {example.row}, id {example.id}" in printed
    assert f"{encoded.num_prompt_tokens} prompt tokens, {encoded.num_response_tokens} response tokens" in printed
    assert "special tokens: <s> x 1, </s> x 2" in printed
    assert "40 rows: 40 kept" in printed
    assert re.search(r"padding .*grouped \(this run\)", printed)


def test_pieces_are_the_whole_text_and_end_with_the_learned_end_token(preview):
    found, _ = preview(ROWS)
    for encoded in found.encoded.train[:5]:
        pieces = list(pieces_of(encoded, found.encoded.tokenizer, found.encoded.encoder.end_token_id))
        text = found.encoded.tokenizer.decode(list(encoded.input_ids), clean_up_tokenization_spaces=False)
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.is_end for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        learned = "".join(piece.text for piece in pieces if piece.is_response)
        assert (
            learned
            == found.context.data.examples[
                int(found.encoded.train.lines[list(found.encoded.train).index(encoded)])
            ].response
            + "</s>"
        )


def test_prompt_response_and_end_differ_in_style(preview):
    from rich.style import Style

    _, printed = preview(ROWS, styled=True)
    for style in (RESPONSE, SPECIAL, END):
        codes = Style.parse(style).render("x").split("x")[0]
        assert codes in printed


def test_control_characters_of_the_data_do_not_reach_the_terminal(preview):
    rows = [{"instruction": f"{ATTACK} {i}", "output": f"{i} {ATTACK}", "group": ATTACK} for i in range(9)]
    _, printed = preview(rows)
    assert not [c for c in printed if c != "\n" and not c.isprintable()]
    assert "\\x1b[31mred" in printed
    assert "\\u202e" in printed
    _, printed = preview(rows, styled=True)
    assert not re.search(r"\x1b(?!\[[0-9;]*m)", printed), "styles of the view alone"
    assert not set("\x07\x9b\u202e\u200b\x00\r") & set(printed)


def test_a_truncated_response_is_shown_without_an_end(preview):
    rows = [{"instruction": f"Say {i}", "output": "long " * 200} for i in range(4)]
    _, printed = preview(rows, "data.overlong=truncate", "data.max_seq_len=64")
    assert "these are learned; truncated, so no end token" in printed


def test_the_census_is_written_beside(preview, tmp_path):
    _, printed = preview([*ROWS, {"instruction": "A", "output": ""}])
    assert "1 dropped: empty response (rows.jsonl row 41)" in printed
    (file,) = tmp_path.glob("runs/data/preview-*/census.json")
    census = read_json(file)
    assert census["rows"] == {"total": 41, "kept": 40, "shortened": 0, "dropped": 1}


def test_what_mixup_covers_is_counted_over_the_pairs_of_an_epoch(preview):
    found, printed = preview(ROWS)
    n = found.encoded.train.num_response_tokens
    steps = StepSampler(len(n), found.is_confident, SamplerSettings(global_batch_size=32, seed=0)).epoch(0)
    mixed = sum(min(n[c], n[u]) for s in steps for c, u in zip(s.confident, s.unconfident, strict=True))
    metrics = measure_batches(found)
    assert metrics.covered == pytest.approx(2 * mixed / n.sum())
    assert metrics.response == pytest.approx(n.sum() / found.encoded.train.lengths.sum())
    assert metrics.padding["packed"] == 0
    assert f"covers {metrics.covered:.1%} of the response tokens" in printed


def test_the_pairs_of_a_known_confidence_are_taken(compose, small_run):
    config, plan = small_run
    found = prepare_preview(config)
    assert str(plan.confidence.folder) in found.pairs
    assert sum(found.is_confident) == len(found.encoded.train) // 2


@pytest.mark.parametrize(("count", "examples", "chosen"), [(1, 9, [0]), (3, 9, [0, 4, 8]), (5, 2, [0, 1])])
def test_examples_are_spread_over_the_set(count, examples, chosen):
    assert spread(count, examples) == chosen


def test_a_recipe_without_mixup_says_so(preview):
    _, printed = preview(ROWS, "recipe=ntp", "recipe.global_batch_size=31")
    assert "Mixup     recipe ntp has no Mixup" in printed
