"""What a run with its split costs in runs of the baseline, by tokens (mode=list and mode=plan)."""

from typing import NamedTuple

from sftmix.config.model import Model
from sftmix.config.schema import Config
from sftmix.estimate.cost import num_flops
from sftmix.stages.plan import Plan

MANY = 10**9
ASSUMED = (
    "NTP runs: operations of all stages over those of recipe=ntp, by tokens; a backward pass takes two forward passes, "
    "one with LoRA (assumed); without attention and held-out losses"
)


class Sizes(NamedTuple):
    """Parameters of a model."""

    whole: int
    trained: int


class TokensOfPass(NamedTuple):
    """Tokens of one pass over the data, without padding."""

    target: int  # Examples to train on, under the tokenizer of the target
    reference: int  # The same under the tokenizer of the reference
    scored: int  # Held-out examples are scored too


SAME = TokensOfPass(1, 1, 1)


class PipelineCost(NamedTuple):
    """Operations of the stages of a run from the start, in runs of the baseline: `recipe=ntp` on the same data."""

    reference: float
    scoring: float
    target: float

    @property
    def in_words(self) -> str:
        stages = ", ".join(f"{name} {cost:.2f}" for name, cost in self._asdict().items() if cost)
        return f"{sum(self):.2f} NTP runs" + (f" ({stages})" if sum(self) > self.target else "")


def scored_checkpoints(config: Config, plan: Plan) -> int:
    """Return how many models score the examples."""
    if plan.confidence is None:
        return 0
    given = config.confidence.checkpoints
    number = config.reference.num_checkpoints if given is None else len(given)
    return 1 if plan.scores_base else number


def pipeline_cost(
    config: Config,
    plan: Plan,
    tokens: TokensOfPass = SAME,
    sizes: tuple[Sizes, Sizes] | None = None,
) -> PipelineCost | None:
    """Return the cost of all stages of a run, finished ones included, or None if it depends on unknown sizes.

    Args:
        tokens: By default, every pass counts the same tokens.
        sizes: Of the target's and of the reference's model. Needed only if the two are different models.
    """
    if config.recipe.comparison == "matched_compute":
        return None  # its length is the outcome of a count of its own
    if sizes is None:
        if plan.confidence is not None and not _have_one_size(config.model, config.reference.model):
            return None
        own = Sizes(MANY, MANY if config.model.lora is None else 1)
        sizes = own, own
    target, reference = sizes
    epochs = config.data.epochs
    baseline = num_flops(*target, epochs * tokens.target)
    tuned, scored = 0, num_flops(reference.whole, 0, scored_checkpoints(config, plan) * tokens.scored)
    if plan.reference is not None:
        tuned = num_flops(*reference, (config.reference.epochs or epochs) * tokens.reference)
    own_run = 0 if config.averages_checkpoints else baseline
    if config.recipe.ntp.has_dro_pass:
        own_run += num_flops(target.whole, 0, epochs * tokens.target)
    return PipelineCost(tuned / baseline, scored / baseline, own_run / baseline)


def _have_one_size(one: Model, other: Model) -> bool:
    return (one.path, one.init, one.lora) == (other.path, other.init, other.lora)
