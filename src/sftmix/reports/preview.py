"""Preview of the data before training: examples as the model sees them, lengths, batches, and what Mixup covers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from sftmix.artifacts.files import write_json
from sftmix.config.schema import Config
from sftmix.data.collate import BatchSettings, collate_step
from sftmix.data.encoding import EncodedExample
from sftmix.data.example import Example
from sftmix.data.layout import LAYOUTS
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.data.shards import EncodedExamples
from sftmix.functional.equations import num_mixed_tokens
from sftmix.stages.context import EncodedData, RunContext
from sftmix.stages.inputs import check_hub
from sftmix.stages.plan import Plan, plan_run
from sftmix.stages.prepare import describe_reading
from sftmix.stages.split import Subsets, partner_order, split_examples, split_in_words
from sftmix.stages.validation_files import few_held_out
from sftmix.terminal import counted, visible

STEPS = 50  # Number of steps of the first epoch whose batches are measured
BINS, BAR = 12, 40
PROMPT, RESPONSE, SPECIAL, END = "dim", "bold green", "cyan", "bold reverse yellow"


@dataclass(frozen=True)
class Preview:
    """The data of a run, and how its steps would be made."""

    context: RunContext
    plan: Plan
    layout: str
    encoded: EncodedData  # The data under the tokenizer of the target
    is_confident: Sequence[bool | None] | None  # Subset of each training example; None without Mixup
    pair_order: Sequence[int] | None  # Rank of each training example; None if partners are drawn at random
    pairs: str  # How examples are paired, in words


def prepare_preview(config: Config) -> Preview:
    """Read and encode the data of a config.

    Raises:
        InputError: If an input is wrong.
    """
    device, plan = plan_run(config)
    check_hub(config, plan.reads_reference)
    context = RunContext(config)
    encoded = context.encoded(config.model)
    split, pairs = _split(context, plan)
    pair_order = split and partner_order(config, encoded.train, split.confidence)
    return Preview(context, plan, device.layout, encoded, split and split.train, pair_order, pairs)


def _split(context: RunContext, plan: Plan) -> tuple[Subsets | None, str]:
    """Return the subsets of the run, or random subsets if confidence is not known yet; None without Mixup."""
    config = context.config
    if config.recipe.mixup is None:
        return None, f"recipe {config.recipe.name} has no Mixup"
    pairing = config.recipe.mixup.pairing
    inside = {"across": "", "free": ", paired freely inside steps", "within": ", paired within the subsets"}
    pairing = inside.get(pairing, f", paired by {pairing}")
    if not config.needs_confidence:
        return split_examples(context, None), f"pairs of {split_in_words(config.split)}{pairing}"
    file = None if config.confidence.path is None else Path(config.confidence.path)
    if plan.confidence is not None and plan.confidence.is_complete:
        file = plan.confidence.folder / "confidence.parquet"
    if file is not None:
        return split_examples(context, file), f"pairs by the confidence of {file}{pairing}"
    num_examples = len(context.encoded(config.model).train)
    at_random = np.random.default_rng(config.seed).permutation(num_examples) % 2 == 0
    pairing = "" if config.recipe.mixup.pairing == "rank" else pairing
    return Subsets(at_random.tolist(), [], {}), f"pairs of random subsets, since no confidence is known yet{pairing}"


def show(preview: Preview, num_examples: int, console: Console | None = None) -> None:
    """Print some examples, the data report, lengths and batches; write the data report to `census.json`."""
    console = console or Console(highlight=False)
    config, data = preview.context.config, preview.context.data
    name, template = config.data.title, config.data.template
    title = f"{name} under template {template}, as the tokenizer of {config.model.title} sees it"
    reading = describe_reading(config.data, data.reading)
    console.print(Text(visible(title), "bold"), Text(visible(reading)), Text(""), sep="\n")
    encoded, train = preview.encoded, preview.encoded.train
    chosen = spread(num_examples, len(train))
    for number, k in enumerate(chosen, start=1):
        label = f"example {number} of {len(chosen)}"
        example = data.examples[int(train.lines[k])]
        console.print(example_view(train[k], example, encoded.tokenizer, encoded.encoder.end_token_id, label))
    legend = Text().append("prompt", PROMPT).append("  ").append("response", RESPONSE).append("  ")
    console.print(legend.append("special token", SPECIAL).append("  ").append("end token", END), Text(""), sep="\n")
    file = Path(config.root) / "data" / f"preview-{name}-{preview.plan.target.fingerprint}" / "census.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, encoded.census.as_dict())
    counts = [f"{len(train):>11,} to train on, {len(encoded.val):,} held out; places in {file}"]
    counts += [f"            {warning}"] if (warning := few_held_out(len(encoded.val))) else []
    for file_name, found in preview.context.validation_files().items():
        counts.append(f"            validation file {visible(found.in_words(file_name))}")
    report = (Text("Census", "bold"), Text(visible(encoded.census.table())), *map(Text, counts), Text(""))
    console.print(*report, sep="\n", soft_wrap=True)
    console.print(lengths_view(train))
    console.print(batches_view(measure_batches(preview), preview.layout, preview.pairs))


def spread(count: int, num_examples: int) -> list[int]:
    """Return the indices of `count` examples, spread evenly over all."""
    return sorted({round(k) for k in np.linspace(0, num_examples - 1, min(count, num_examples))})


class Piece(NamedTuple):
    """Some consecutive tokens as text."""

    text: str
    is_response: bool  # Whether the tokens have loss
    is_special: bool
    is_end: bool  # Whether the piece is the end token of the response


def pieces_of(encoded: EncodedExample, tokenizer: Any, end_token_id: int) -> Iterator[Piece]:
    """Yield the tokens of an example as pieces: prompt and response separately, each special token separately."""
    ids, border = encoded.input_ids, encoded.num_prompt_tokens
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    around_special = (cut for k, token in enumerate(ids) if token in special for cut in (k, k + 1))
    before = ""
    for start, stop in pairwise(sorted({0, border, len(ids), *around_special})):
        # decoded together with the tokens before, since SentencePiece omits the space before the first word of a text
        whole = tokenizer.decode(list(ids[:stop]), clean_up_tokenization_spaces=False)
        is_special = stop - start == 1 and ids[start] in special
        text = tokenizer.convert_ids_to_tokens(ids[start]) if is_special else whole[len(before) :]
        before = whole
        is_end = is_special and stop == len(ids) and start >= border and ids[start] == end_token_id
        yield Piece(text, start >= border, is_special, is_end)


def example_view(encoded: EncodedExample, example: Example, tokenizer: Any, end_token_id: int, title: str) -> Group:
    """Return one example: prompt dim, response bright, special tokens colored, the end token marked, counts below."""
    text, specials, ended = Text(), Counter[str](), False
    for piece in pieces_of(encoded, tokenizer, end_token_id):
        shown = visible(piece.text)
        if piece.is_special:
            specials[shown] += 1
        ended = ended or piece.is_end
        style = END if piece.is_end else SPECIAL if piece.is_special else RESPONSE if piece.is_response else PROMPT
        text.append(shown, style)
    num_prompt, num_response = encoded.num_prompt_tokens, encoded.num_response_tokens
    counts = ", ".join(f"{token} x {count}" for token, count in specials.items()) or "none"
    group = f", group {visible(example.group)}" if example.group else ""
    below = Text(
        f"{num_prompt} prompt tokens, {num_response} response tokens (these are learned"
        f"{', the end token too' if ended else '; truncated, so no end token'}); special tokens: {counts}{group}",
        "italic",
    )
    head = f"{title}: {visible(example.place)}, id {example.id}"
    return Group(Rule(Text(head), align="left"), Padding(text, (0, 0, 0, 2)), below, Text(""))


def lengths_view(encoded: EncodedExamples) -> Group:
    """Return quantiles of the tokens of prompt, response and both, and a histogram of the response."""
    counts = {"prompt": encoded.num_prompt_tokens, "response": encoded.num_response_tokens, "both": encoded.lengths}
    columns = [Column(name, justify="right") for name in ("mean", "least", "5%", "median", "95%", "most")]
    table = Table("tokens", *columns, box=None, title="Lengths of the examples to train on", title_justify="left")
    for name, tokens in counts.items():
        quantiles = np.quantile(tokens, (0, 0.05, 0.5, 0.95, 1))
        table.add_row(name, f"{tokens.mean():.1f}", *(f"{q:,.0f}" for q in quantiles))
    return Group(table, Text(""), *_histogram("response tokens", encoded.num_response_tokens), Text(""))


def _histogram(title: str, tokens: np.ndarray) -> Iterator[Text]:
    edges = np.unique(np.geomspace(1, max(2, int(tokens.max()) + 1), BINS + 1).round().astype(int))
    counts, _ = np.histogram(tokens, edges)
    yield Text(f"  {title:>15}   examples")
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        span = f"{low:,}" if high == low + 1 else f"{low:,} to {high - 1:,}"
        yield Text(f"  {span:>15} {count:>10,} ").append("#" * round(BAR * count / max(1, counts.max())), "green")


class BatchMetrics(NamedTuple):
    """Means over some optimizer steps."""

    steps: int
    tokens: float  # Tokens per step, without padding
    response: float  # Share of response tokens among them
    padding: dict[str, float]  # Share of padding among all positions, by layout
    covered: float  # Share of the response tokens of an epoch that Mixup mixes


def measure_batches(preview: Preview) -> BatchMetrics:
    train, config = preview.encoded.train, preview.context.config
    lengths, order = train.lengths.tolist(), preview.pair_order
    recipe = config.recipe
    settings = SamplerSettings(
        recipe.global_batch_size,
        config.seed,
        length_window=recipe.length_window,
        pairing=recipe.mixup.pairing if recipe.mixup else "across",
    )
    steps = StepSampler(len(train), preview.is_confident, settings, lengths=lengths, pair_order=order).epoch(0)
    num_response = train.num_response_tokens
    mixed = sum(
        num_mixed_tokens(int(num_response[c]), int(num_response[u]))
        for step in steps
        for c, u in zip(step.confident, step.unconfident, strict=True)
    )
    tokens = response = 0
    positions = dict.fromkeys(LAYOUTS, 0)
    ones, max_tokens = [1.0] * len(train), config.trainer.micro_batch_tokens
    pad_token_id = preview.encoded.tokenizer.pad_token_id
    for step in steps[:STEPS]:
        for layout in LAYOUTS:
            batch = collate_step(step, train, ones, BatchSettings(layout, max_tokens, pad_token_id))
            positions[layout] += sum(i.input_ids.numel() for m in batch.micro_batches for i in m.inputs)
        tokens += batch.num_input_tokens
        response += batch.num_tokens
    return BatchMetrics(
        len(steps[:STEPS]),
        tokens / len(steps[:STEPS]),
        response / tokens,
        {layout: 1 - tokens / count for layout, count in positions.items()},
        2 * mixed / int(num_response.sum()),
    )


def batches_view(metrics: BatchMetrics, layout: str, pairs: str) -> Group:
    padding = ", ".join(
        f"{share:.1%} {name}{' (this run)' if name == layout else ''}" for name, share in metrics.padding.items()
    )
    covers = f"covers {metrics.covered:.1%} of the response tokens, over a whole epoch; " if metrics.covered else ""
    return Group(
        Text(f"Batches, means over the first {counted(metrics.steps, 'step')}", "bold"),
        Text(f"  {metrics.tokens:>9,.0f} tokens a step, {metrics.response:.1%} of them in responses"),
        Text(f"  padding   {padding}"),
        Text(f"  Mixup     {covers}{visible(pairs)}"),
    )
