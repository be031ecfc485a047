"""Splits by another rule than confidence, end to end: nothing is scored, and each run trains on what it reports."""

import json
import math
import re
from pathlib import Path

import pyarrow as pa
import pytest

from builders import SCORED_IDS, scores_of
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_table, write_table
from sftmix.data.encoding import EncodedExample
from sftmix.data.pairing import SamplerSettings
from sftmix.data.shards import EncodedExamples
from sftmix.errors import InputError
from sftmix.reports.preview import prepare_preview
from sftmix.reports.summary import summarize
from sftmix.stages import confidence, reference, target
from sftmix.stages import train as tuning
from sftmix.stages.context import RunContext
from sftmix.stages.invariance.check import check_invariance
from sftmix.stages.split import partner_order, read_split, split_examples, ties_in_words

GROUP = ("split.by=group", "split.confident=rule/copying")


def nothing_is_tuned(monkeypatch):
    monkeypatch.setattr(reference, "tune", None)
    monkeypatch.setattr(target, "tune", None)


def parts_of(plan, part):
    """The id and half of each example of a part in a run's split.parquet."""
    split = read_table(plan.target.folder / "split.parquet")
    assert split["confidence"] == [None] * len(split["example_id"])
    rows = zip(split["example_id"], split["subset"], split["part"], strict=True)
    return {i: half for i, half, p in rows if p == part}


@pytest.fixture
def encoded(compose, small_overrides, tmp_path):
    """Ids, response tokens and groups of a part of the small data set."""
    context = RunContext(compose(*small_overrides, f"root={tmp_path}"))
    both = context.encoded(context.config.model)

    def of(part):
        some = both.train if part == "train" else both.val
        groups = [context.data.examples[int(line)].group for line in some.lines]
        tokens = [len(e.input_ids) - e.num_prompt_tokens for e in some]
        return dict(zip(some.ids, zip(tokens, groups, strict=True), strict=True))

    return of


@pytest.mark.parametrize("by", [("split.by=random",), ("split.by=length",), GROUP], ids=["random", "length", "group"])
def test_a_run_scores_nothing_and_splits_as_it_says(run, encoded, monkeypatch, capsys, tmp_path, by):
    monkeypatch.setattr(reference, "tune", None)
    plan = run(*by)
    said = capsys.readouterr().out
    assert not list(tmp_path.glob("confidence-*")) + list(tmp_path.glob("ntp-*"))
    assert "scoring" not in said
    metrics = read_json(plan.target.folder / "metrics.json")
    assert metrics["val_loss"] < metrics["val_loss_before"]
    sizes = {}
    for part in ("train", "val"):
        halves, known = parts_of(plan, part), encoded(part)
        assert list(halves) == list(known)
        confident = {i for i in halves if halves[i] == "confident"}
        others = {i for i in halves if halves[i] == "unconfident"}
        sizes[part] = len(confident), len(others)
        assert sum(sizes[part]) == len(halves)
        if by == GROUP:
            assert confident == {i for i, (_, group) in known.items() if group == "rule/copying"}
            continue
        assert len(others) - len(confident) in (0, 1)
        if by == ("split.by=length",):
            assert max(known[i] for i in confident)[0] <= min(known[i] for i in others)[0]
    few, many = sizes["train"]
    assert f"{few} examples in the confident subset, {many} in the unconfident one" in said
    assert (metrics["examples"], metrics["pairs"]) == (few + many, min(few, many)), (
        "the surplus is there, without partner"
    )

    text = summarize(plan.target.folder, None, None)
    names = {"random": "first subset", "length": "shorter responses", "group": "group rule/copying"}
    others = {"random": "second subset", "length": "longer responses", "group": "other groups"}
    kind = by[0].removeprefix("split.by=")
    for name in (names[kind], others[kind]):
        assert re.search(rf"^  {name} +\d", text, re.MULTILINE), text
    assert "confident subset" not in text
    assert read_json(plan.target.folder / "manifest.json")["fields"]["split"]["by"] == kind


def test_random_halves_follow_their_own_seed(compose, small_overrides, tmp_path):
    def halves(*overrides):
        config = compose(*small_overrides, "split.by=random", f"root={tmp_path}", *overrides)
        return split_examples(RunContext(config), None).train

    assert halves() == halves() == halves("seed=3", "split.seed=0")
    assert halves("seed=3") == halves("split.seed=3") != halves()


@pytest.mark.parametrize("on", ["confident", "unconfident"])
def test_ntp_on_one_part_of_a_group_trains_on_that_part_alone(run, encoded, on):
    plan = run("recipe=ntp", f"recipe.ntp.on={on}", *GROUP)
    metrics = read_json(plan.target.folder / "metrics.json")
    members = [group == "rule/copying" for _, group in encoded("train").values()]
    assert metrics["examples"] == members.count(on == "confident")
    assert metrics["pairs"] == 0


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["split.by=group", "split.confident=hihg"],
            r"split\.confident=hihg: none of the \d+ examples to train on is of that group; there are noise/gib",
        ),
        (
            ["data=demo_quality", "data.groups=[high]", "split.by=group", "split.confident=high"],
            r"split\.confident=high: all \d+ examples to train on are of that group, expected others too",
        ),
        (
            [
                *("data.demo.num_examples=6", "data.val_fraction=0", "data.demo.seed=6", "data.num_checkpoints=1"),
                *("recipe=ntp", "recipe.ntp.on=confident", "split.by=group", "split.confident=GROUP"),
            ],
            r"recipe\.ntp\.on=confident: 1 example in that subset \(group .* and the others\), expected at least 2",
        ),
    ],
)
def test_a_split_that_leaves_nothing_to_train_on_is_told_before_training(run, monkeypatch, overrides, says):
    from sftmix.data.demo import demo_rows

    groups = [row["group"] for row in demo_rows(6, 6)]
    once = next(group for group in groups if groups.count(group) == 1)
    nothing_is_tuned(monkeypatch)
    with pytest.raises(InputError, match=says) as error:
        run(*(o.replace("GROUP", once) for o in overrides))
    assert "\n" not in str(error.value)


def test_a_group_that_no_example_can_have_is_told_without_a_terminals_characters(run, tmp_path, monkeypatch):
    rows = [{"instruction": f"Say {i}", "output": f"{i}", "group": f"a\x1b[2J{i % 2}\n"} for i in range(40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    nothing_is_tuned(monkeypatch)
    other = ("data.demo=null", f"data.path={tmp_path / 'rows.json'}", "split.by=group", "split.confident=b")
    with pytest.raises(InputError, match=r"there are a\\x1b\[2J0\\n, a\\x1b\[2J1\\n"):
        run(*other)
    (tmp_path / "rows.json").write_text(json.dumps([{k: v for k, v in row.items() if k != "group"} for row in rows]))
    with pytest.raises(InputError, match=r"they have none \('data\.columns=\{group: NAME\}'\)"):
        run(*other)


def pairs_of_first_epoch(monkeypatch, run, *overrides):
    """Who meets whom in a run, as its sampler deals them: pairs of ids, for two epochs."""
    seen = []
    whole = tuning.fit

    def watched(module, data, *arguments):
        ids = data.train.ids
        for epoch in (0, 1):
            steps = data.sampler.epoch(epoch)
            seen.append({(ids[c], ids[u]) for s in steps for c, u in zip(s.confident, s.unconfident, strict=True)})
        return whole(module, data, *arguments)

    monkeypatch.setattr(tuning, "fit", watched)
    plan = run(*overrides)
    monkeypatch.undo()
    assert seen[-1] == seen[-2], "the same in every epoch"
    return plan, seen[-1]


def test_by_rank_the_kth_most_confident_meets_the_kth_most_confident(copy_of_run, run, monkeypatch):
    _, root = copy_of_run
    plan, pairs = pairs_of_first_epoch(monkeypatch, lambda *o: run(*o, root=root), "recipe.mixup.pairing=rank")
    split = read_table(plan.target.folder / "split.parquet")
    rows = list(zip(*(split[k] for k in ("confidence", "example_id", "subset", "part")), strict=True))
    ordered = {
        half: [i for _, i, h, part in sorted(rows, key=lambda r: (-r[0], r[1])) if (h, part) == (half, "train")]
        for half in ("confident", "unconfident")
    }
    confident, unconfident = ordered.values()
    assert abs(len(confident) - len(unconfident)) <= 1
    number = len(confident)
    met = unconfident if len(unconfident) == number else unconfident[: number // 2] + unconfident[number // 2 + 1 :]
    assert pairs == set(zip(confident, met, strict=True))
    fields = read_json(plan.target.folder / "manifest.json")["fields"]
    assert fields["recipe"]["mixup"]["pairing"] == "rank"


def test_by_length_partners_are_of_like_length_and_more_is_mixed(run, encoded, monkeypatch):
    plan, pairs = pairs_of_first_epoch(monkeypatch, run, "split.by=random", "recipe.mixup.pairing=length")
    tokens = {i: n for i, (n, _) in encoded("train").items()}
    by_confident = sorted((tokens[c], tokens[u]) for c, u in pairs)
    assert [u for _, u in by_confident] == sorted(tokens[u] for _, u in pairs), "both in one order"
    mixed = sum(min(tokens[c], tokens[u]) for c, u in pairs)
    crossed = sum(map(min, sorted(tokens[c] for c, _ in pairs), sorted((tokens[u] for _, u in pairs), reverse=True)))
    assert mixed > crossed
    assert plan.target.is_complete


def test_confidence_that_is_not_known_orders_nothing(compose, small_overrides, tmp_path):
    config = compose(*small_overrides, "recipe.mixup.pairing=rank", f"root={tmp_path}")
    train = RunContext(config).encoded(config.model).train
    assert partner_order(config, train, {}) is None
    known = {i: float(k % 5) for k, i in enumerate(train.ids)}
    order = partner_order(config, train, known)
    ranked = sorted(train.ids, key=lambda i: (-known[i], i))
    assert [ranked[place] for place in order] == train.ids


def test_the_preview_takes_the_subsets_that_the_run_will_take(compose, small_overrides, tmp_path):
    def preview(*overrides):
        return prepare_preview(compose(*small_overrides, f"root={tmp_path}", *overrides))

    config = compose(*small_overrides, f"root={tmp_path}", *GROUP)
    found = preview(*GROUP, "recipe.mixup.pairing=length")
    assert found.is_confident == split_examples(RunContext(config), None).train
    assert found.pairs == "pairs of group rule/copying and the others, paired by length"
    assert sorted(found.pair_order) == list(range(len(found.encoded.train)))
    found = preview("recipe.mixup.pairing=rank")
    assert (found.pair_order, found.pairs) == (None, "pairs of random subsets, since no confidence is known yet")


@pytest.mark.parametrize("group", [(), ("split.by=group", "split.confident=none")])
def test_the_invariance_check_uses_the_split_of_the_run(compose, small_overrides, tmp_path, monkeypatch, group):
    from sftmix.stages.invariance import check as module

    taken = []
    monkeypatch.setattr(module, "_compare", lambda *_: taken.append(1) or [])
    split = group or ("split.by=length", "recipe.mixup.pairing=length")
    config = compose(*small_overrides, "mode=certify", f"root={tmp_path}", *split)
    if group:
        with pytest.raises(InputError, match=r"split\.confident=none: none of"):
            check_invariance(config)
        assert not taken
    else:
        assert check_invariance(config).description.endswith("pairs of subsets by length")


def test_the_invariance_check_uses_the_pairs_of_the_run(compose, small_overrides, tmp_path, monkeypatch):
    from sftmix.distributed.ranks import SINGLE
    from sftmix.distributed.stopping import StopRequest
    from sftmix.stages.context import RankContext, StageSpec
    from sftmix.stages.invariance import gradients
    from sftmix.stages.invariance.check import FIRST

    config = compose(*small_overrides, "recipe.mixup.pairing=length", *GROUP, f"root={tmp_path}")
    context = RunContext(config)
    train, made = context.encoded(config.model).train, []
    real = gradients.StepSampler
    monkeypatch.setattr(gradients, "StepSampler", lambda *a, **k: made.append(real(*a, **k)) or made[-1])
    monkeypatch.setattr(gradients, "step_gradient", lambda *_, **__: 0.0)
    from sftmix.distributed.device import Device

    device = Device("cpu", "32-true", "padded")
    gradients.write_gradients(
        StageSpec("certify", tmp_path, FIRST._asdict()), context, RankContext(device, SINGLE, StopRequest())
    )
    expected = real(
        len(train),
        split_examples(context, None).train,
        SamplerSettings(global_batch_size=16, alpha=0.5, seed=0),
        pair_order=partner_order(config, train, {}),
    )
    assert made[0].num_pairs == 0
    assert made[1].epoch(0) == expected.epoch(0)


def test_table_4s_rows_run_on_the_demo(run, tmp_path):
    """Right answers alone; both qualities; Mixup between them."""
    ntp = ("data=demo_quality", "recipe=ntp", "recipe.global_batch_size=16")
    mixed = ("data=demo_quality", "split.by=group", "split.confident=high")
    plans = [run(*ntp, "data.groups=[high]"), run(*ntp), run(*mixed)]
    assert len({plan.target.fingerprint for plan in plans}) == 3
    high, both, mixup = (read_json(plan.target.folder / "metrics.json") for plan in plans)
    assert high["pairs"] == both["pairs"] == 0
    assert both["examples"] == mixup["examples"]
    assert mixup["pairs"] == min(high["examples"], both["examples"] - high["examples"])
    half = parts_of(plans[2], "train")
    assert list(half.values()).count("confident") == high["examples"]
    assert not list(tmp_path.glob("confidence-*"))


@pytest.mark.parametrize(
    ("scores", "use", "says"),
    [
        (scores_of(nll=[2.0] * 20), None, r"10 of the 10 examples to train on have the same confidence, -1\.64872, so"),
        (scores_of(nll=[2.0] * 14 + [1.0, 3.0] * 3), None, "7 of the 10 examples"),
        (
            scores_of(nll=[4000.0 + k // 2 for k in range(20)]),
            None,
            r"10 of the 10 .*, -inf \(an infinite perplexity\)",
        ),
        (scores_of(nll=[4000.0] * 12 + [1.0 + k // 2 for k in range(8)]), None, "6 of the 10 .*infinite"),
    ],
)
def test_a_file_that_holds_no_confidence_is_refused_with_its_row(tmp_path, scores, use, says):
    file = tmp_path / "c.parquet"
    write_table(file, {k: pa.array(v, pa.float64() if k == "nll" and not v else None) for k, v in scores.items()})
    with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: {says}") as caught:
        read_split(file, SCORED_IDS, use, is_given=True)
    assert "\n" not in str(caught.value)


def test_half_the_examples_may_be_equal_or_infinite(tmp_path):
    file = tmp_path / "c.parquet"
    write_table(file, scores_of(nll=[4000.0] * 10 + [1.0 + k // 2 for k in range(10)]))
    halves, known = read_split(file, SCORED_IDS, None, is_given=True)
    assert [i for i in SCORED_IDS if halves[i]] == SCORED_IDS[5:]
    assert ties_in_words([known[i] for i in SCORED_IDS]) == [
        "5 of 10 examples to train on have an infinite perplexity under a checkpoint: they are unconfident"
    ]
    write_table(file, scores_of(nll=[1.0, 1.0] * 3 + [2.0] * 8 + [3.0] * 6))
    halves, known = read_split(file, SCORED_IDS, None, is_given=True)
    assert [i for i in SCORED_IDS if halves[i]] == SCORED_IDS[:5]
    assert ties_in_words(list(known.values())) == [
        f"4 of 10 examples to train on have the confidence of the median, {-math.exp(0.5):g}: ids decide their subsets"
    ]
    write_table(file, scores_of())
    assert ties_in_words(list(read_split(file, SCORED_IDS, None, is_given=True)[1].values())) == []


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    table = scores_of(checkpoints=3)
    order = sorted(range(30), key=lambda k: k * 7 % 30)
    for name, rows in (("a", range(30)), ("b", order)):
        write_table(tmp_path / name, {key: [values[k] for k in rows] for key, values in table.items()})
    assert read_split(tmp_path / "a", SCORED_IDS, 2, is_given=True) == read_split(
        tmp_path / "b", SCORED_IDS, 2, is_given=True
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_under_which_a_response_has_no_finite_nll_is_named(value):
    encoded = EncodedExamples.of([EncodedExample(i, (1, 2), 1) for i in SCORED_IDS])
    scored = confidence.CheckpointScores(None, encoded, [1.0] * 9 + [value], "padded", 10, 20, 30)
    with pytest.raises(InputError, match=rf"^step-000004: under .* 1 of 10 responses .* \(example 0+9: {value}\)"):
        confidence._check_finite(scored, Path("step-000004"))
    confidence._check_finite(scored._replace(nll=[1.0] * 10), Path("step-000004"))
