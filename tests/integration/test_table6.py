"""Table 6: which examples take part in next-token prediction and in Mixup, decided from gradients, never from settings.

Each of the six rows runs as it is up to its training loop. There the loop's module and steps are taken, and of every
example of an epoch the gradient of the loss with respect to the embeddings of its own tokens is looked at: of the
whole loss, of it with mu 0 (next-token prediction alone) and of it with no weight on next-token prediction (Mixup
alone). An example is known by its tokens.
"""

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from sftmix.artifacts.tables import write_table
from sftmix.stages import train as tuning
from sftmix.stages.context import RunContext

NUM_EXAMPLES = 121


class Caught(Exception):
    """The training loop was reached."""

    def __init__(self, module, data):
        super().__init__()
        self.module, self.data = module, data


class Reached(NamedTuple):
    """Ids of the examples whose own tokens a loss has a gradient for, and of all that came in the epoch."""

    by_all: set[str]
    by_ntp: set[str]
    by_mixup: set[str]
    came: set[str]


@pytest.fixture(scope="module")
def known(compose, small_overrides, tmp_path_factory):
    """Examples to train on by their tokens, and a confidence file for them: (ids by tokens, confidence by id, file)."""
    root = tmp_path_factory.mktemp("scores")
    context = RunContext(compose(*small_overrides, f"data.demo.num_examples={NUM_EXAMPLES}", f"root={root}"))
    encoded = context.encoded(context.config.model)
    ids = {e.input_ids: e.example_id for e in encoded.train}
    assert len(ids) == len(encoded.train)
    r = random.Random(0)
    table = {"example_id": [], "checkpoint": [], "num_tokens": [], "nll": []}
    for example_id in [*encoded.train.ids, *encoded.val.ids]:
        for name, value in zip(table, (example_id, 1, 10, r.uniform(1, 30)), strict=True):
            table[name].append(value)
    write_table(root / "confidence.parquet", table)
    nll = dict(zip(table["example_id"], table["nll"], strict=True))
    return ids, {i: -nll[i] for i in ids.values()}, root / "confidence.parquet"


def embedding_gradients(module, batch, ids):
    """Of a step, whether each example's own tokens have a gradient: 0 exactly, or not. One line holds one example."""
    embeddings = []
    hook = module.lm.causal_lm.get_input_embeddings().register_forward_hook(
        lambda _, __, out: (out.retain_grad(), embeddings.append(out))[1]
    )
    module.lm.zero_grad()
    try:
        module.backward_of_step(batch)
    finally:
        hook.remove()
    found = {}
    lines = [input_ids for micro in batch.micro_batches for input_ids, *_ in micro.inputs]
    for tokens, out in zip(lines, embeddings, strict=True):
        for line, gradient in zip(tokens.tolist(), out.grad, strict=True):
            (example_id,) = {ids[k] for k in (tuple(line[:n]) for n in range(1, len(line) + 1)) if k in ids}
            assert example_id not in found
            assert torch.isfinite(gradient).all()
            found[example_id] = bool((gradient != 0).any())
    return found


def who_took_part(compose, small_overrides, root, known, monkeypatch, *overrides) -> Reached:
    from sftmix.stages.pipeline import run_pipeline

    ids, _, file = known
    scored = () if "recipe=ntp" in overrides and len(overrides) == 1 else (f"confidence.path={file}",)
    config = compose(
        *small_overrides,
        f"data.demo.num_examples={NUM_EXAMPLES}",
        f"root={root}",
        "trainer.layout=padded",
        *scored,
        *overrides,
    )

    def catch(module, data, *_):
        raise Caught(module, data)

    monkeypatch.setattr(tuning, "fit", catch)
    with pytest.raises(Caught) as caught:
        run_pipeline(config)
    module, data = caught.value.module, caught.value.data
    module._trainer = SimpleNamespace(strategy=None, world_size=1, global_step=0)
    module.manual_backward = lambda loss: loss.backward()
    module.lm.double()  # no lambda rounds to 0 or 1
    mu = module.loss.mu
    reached: dict[str, dict[str, bool]] = {"all": {}, "ntp": {}, "mixup": {}}
    for number in range(data.steps_per_epoch):
        batch = data.steps()[0, number]
        unweighted = batch._replace(
            micro_batches=tuple(micro._replace(weights=0 * micro.weights) for micro in batch.micro_batches)
        )
        for loss, taken, at in (("all", batch, mu), ("ntp", batch, mu and 0.0), ("mixup", unweighted, mu)):
            module.loss = replace(module.loss, mu=at)
            found = embedding_gradients(module, taken, ids)
            assert not set(found) & set(reached[loss]), "each example once an epoch"
            reached[loss].update(found)
    by = {loss: {i for i, is_reached in found.items() if is_reached} for loss, found in reached.items()}
    return Reached(by["all"], by["ntp"], by["mixup"], set(reached["all"]))


ROWS = {
    "full, no Mixup": ("all", False, ["recipe=ntp"]),
    "full, Mixup": ("all", True, ["recipe=sftmix"]),
    "confident, no Mixup": ("confident", False, ["recipe=ntp", "recipe.ntp.on=confident"]),
    "confident, Mixup": ("confident", True, ["recipe=sftmix", "recipe.ntp.on=confident"]),
    "unconfident, no Mixup": ("unconfident", False, ["recipe=ntp", "recipe.ntp.on=unconfident"]),
    "unconfident, Mixup": ("unconfident", True, ["recipe=sftmix", "recipe.ntp.on=unconfident"]),
}


@pytest.mark.parametrize(("subset", "has_mixup", "overrides"), ROWS.values(), ids=ROWS)
def test_who_takes_part_in_each_row(
    compose, small_overrides, tmp_path, known, monkeypatch, subset, has_mixup, overrides
):
    """The halves are worked out here from the confidences that were made up: ordered, cut in the middle."""
    _, confidence, _ = known
    ordered = sorted(confidence, key=lambda i: (-confidence[i], i))
    assert len(ordered) % 2 == 1, "one example has no partner, so that one may take part in nothing"
    halves = {"confident": set(ordered[: len(ordered) // 2]), "unconfident": set(ordered[len(ordered) // 2 :])}
    wanted = set(ordered) if subset == "all" else halves[subset]

    took = who_took_part(compose, small_overrides, tmp_path, known, monkeypatch, *overrides)
    assert took.by_ntp == wanted
    if has_mixup:
        assert took.came == set(ordered)
        assert halves["confident"] <= took.by_mixup
        (alone,) = set(ordered) - took.by_mixup
        assert alone in halves["unconfident"]
    else:
        assert took.came == wanted, "the others are not in the data set"
        assert not took.by_mixup
    assert took.by_all == took.by_ntp | took.by_mixup, "who is in neither has a gradient of exactly zero"


def test_a_wrong_recipe_would_be_seen(compose, small_overrides, tmp_path, known, monkeypatch):
    """With weights on the wrong subset the gradients differ: the test looks at gradients and not at settings."""
    from sftmix.stages import target

    whole = target.tune

    def turned(spec, config, context, rank, examples, **settings):
        weights = [1.0 - weight for weight in examples.weights]
        return whole(spec, config, context, rank, replace(examples, weights=weights), **settings)

    monkeypatch.setattr(target, "tune", turned)
    _, confidence, _ = known
    ordered = sorted(confidence, key=lambda i: (-confidence[i], i))
    took = who_took_part(
        compose, small_overrides, tmp_path, known, monkeypatch, "recipe=sftmix", "recipe.ntp.on=confident"
    )
    assert took.by_ntp == set(ordered[len(ordered) // 2 :])
