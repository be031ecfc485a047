"""A look at the data before training: examples as the model sees them, lengths, batches, what Mixup covers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from sftmix.artifacts.files import write_json
from sftmix.data.census import Census
from sftmix.data.collate import BatchSettings, collate_step
from sftmix.data.encoding import EncodedExample
from sftmix.data.example import Example
from sftmix.data.layout import LAYOUTS
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.data.shards import EncodedExamples, Examples
from sftmix.functional.equations import num_mixed_tokens
from sftmix.terminal import counted, visible

STEPS = 50  # of the first epoch, that batches are looked at in
BINS, BAR = 12, 40
PROMPT, RESPONSE, SPECIAL, END = "dim", "bold green", "cyan", "bold reverse yellow"


class Piece(NamedTuple):
    """Some neighbouring tokens as text.

    Attributes:
        text: what they decode to, where they stand.
        is_response: whether they carry loss.
        is_special: whether it is one special token.
        is_end: whether it is the end token that the response is learnt with.
    """

    text: str
    is_response: bool
    is_special: bool
    is_end: bool


def pieces_of(encoded: EncodedExample, tokenizer: Any, end_token_id: int) -> Iterator[Piece]:
    """The tokens of an example as pieces: prompt and response apart, each special token for itself."""
    ids, border = encoded.input_ids, encoded.num_prompt_tokens
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    cuts = {0, border, len(ids)}
    for k, token in enumerate(ids):
        if token in special:
            cuts |= {k, k + 1}
    ordered = sorted(cuts)
    before = ""
    for start, stop in pairwise(ordered):
        # with what stands before it, since SentencePiece leaves out the blank of a text's first word
        whole = tokenizer.decode(list(ids[:stop]), clean_up_tokenization_spaces=False)
        is_special = stop - start == 1 and ids[start] in special
        text = tokenizer.convert_ids_to_tokens(ids[start]) if is_special else whole[len(before) :]
        before = whole
        is_end = is_special and stop == len(ids) and start >= border and ids[start] == end_token_id
        yield Piece(text, start >= border, is_special, is_end)


def example_view(encoded: EncodedExample, example: Example, tokenizer: Any, end_token_id: int, title: str) -> Group:
    """One example: prompt dim, response bright, special tokens coloured, the end token marked, counts below."""
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
        f"{num_prompt} prompt tokens, {num_response} response tokens (these are learnt"
        f"{', the end token too' if ended else '; truncated, so no end token'}); special tokens: {counts}{group}",
        "italic",
    )
    head = f"{title}: {visible(example.place)}, id {example.id}"
    return Group(Rule(Text(head), align="left"), Padding(text, (0, 0, 0, 2)), below, Text(""))


def lengths_view(encoded: EncodedExamples) -> Group:
    """Quantiles and histogram of tokens of prompt, response and both."""
    parts = {
        "prompt": encoded.num_prompt_tokens,
        "response": encoded.num_response_tokens,
        "both": encoded.lengths,
    }
    names = ("mean", "least", "5%", "median", "95%", "most")
    table = Table("tokens", *names, box=None, title="Lengths of the examples to train on", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, tokens in parts.items():
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


class BatchFigures(NamedTuple):
    """Means over some optimizer steps.

    Attributes:
        steps: how many were looked at.
        tokens: real tokens a step.
        response: share of them that is learnt.
        padding: share of the positions that hold none, by layout.
        covered: share of the response tokens that Mixup mixes.
    """

    steps: int
    tokens: float
    response: float
    padding: dict[str, float]
    covered: float


def batch_figures(
    encoded: EncodedExamples,
    is_confident: Sequence[bool | None] | None,
    *,
    order: Sequence[int] | None = None,
    global_batch_size: int,
    micro_batch_tokens: int,
    seed: int,
    length_window: int,
    pad_token_id: int,
) -> BatchFigures:
    """What the first steps of a run would be made of.

    Args:
        encoded: examples to train on.
        is_confident: the half of each; None without Mixup.
        order: the place of each in the order by which partners meet; None where they are drawn.
        global_batch_size: examples per optimizer step.
        micro_batch_tokens: tokens of a micro-batch.
        seed: of the order.
        length_window: steps within which examples of like length share one.
        pad_token_id: fills up shorter sequences.
    """
    sampler = StepSampler(
        len(encoded),
        is_confident,
        SamplerSettings(global_batch_size=global_batch_size, seed=seed, length_window=length_window),
        lengths=encoded.lengths.tolist(),
        pair_order=order,
    )
    steps = sampler.epoch(0)
    num_response = encoded.num_response_tokens
    mixed = sum(
        num_mixed_tokens(int(num_response[c]), int(num_response[u]))
        for step in steps
        for c, u in zip(step.confident, step.unconfident, strict=True)
    )
    tokens = response = 0
    positions = dict.fromkeys(LAYOUTS, 0)
    ones = [1.0] * len(encoded)
    for step in steps[:STEPS]:
        for layout in LAYOUTS:
            batch = collate_step(step, encoded, ones, BatchSettings(layout, micro_batch_tokens, pad_token_id))
            positions[layout] += sum(i.input_ids.numel() for m in batch.micro_batches for i in m.inputs)
        tokens += batch.num_input_tokens
        response += batch.num_tokens
    return BatchFigures(
        len(steps[:STEPS]),
        tokens / len(steps[:STEPS]),
        response / tokens,
        {layout: 1 - tokens / count for layout, count in positions.items()},
        2 * mixed / int(num_response.sum()),
    )


def batches_view(figures: BatchFigures, layout: str, halves: str) -> Group:
    """The figures in words."""
    padding = ", ".join(
        f"{share:.1%} {name}{' (this run)' if name == layout else ''}" for name, share in figures.padding.items()
    )
    lines = [
        Text(f"Batches, means over the first {counted(figures.steps, 'step')}", "bold"),
        Text(f"  {figures.tokens:>9,.0f} tokens a step, {figures.response:.1%} of them in responses"),
        Text(f"  padding   {padding}"),
        Text(f"  Mixup     covers {figures.covered:.1%} of the response tokens, over a whole epoch; {visible(halves)}"),
    ]
    if not figures.covered:
        lines[-1] = Text(f"  Mixup     {visible(halves)}")
    return Group(*lines)


def show(
    num_examples: int,
    *,
    title: str,
    said: str,
    tokenizer: Any,
    end_token_id: int,
    train: EncodedExamples,
    num_val: int,
    census: Census,
    examples: Examples,
    layout: str,
    is_confident: Sequence[bool | None] | None,
    order: Sequence[int] | None,
    halves: str,
    global_batch_size: int,
    micro_batch_tokens: int,
    length_window: int,
    seed: int,
    folder: Path,
    console: Console | None = None,
) -> None:
    """Print examples, census, lengths and batches; write the census to `census.json`.

    Args:
        num_examples: examples to show, spread over all.
        title: data, template and model in words.
        said: what was found in reading.
        tokenizer: of the target.
        end_token_id: the token that ends a response.
        train: examples to train on.
        num_val: held-out examples.
        census: what became of every row.
        examples: the text of all examples.
        layout: how sequences would lie in the body.
        is_confident: the half of each example to train on; None without Mixup.
        order: the place of each in the order by which partners meet; None where they are drawn.
        halves: where the halves come from.
        global_batch_size: examples per optimizer step.
        micro_batch_tokens: tokens of a micro-batch.
        length_window: steps within which examples of like length share one.
        seed: of the order.
        folder: where the census is written; made where it is not there.
        console: where to print; the terminal.
    """
    console = console or Console(highlight=False)
    console.print(Text(visible(title), "bold"), Text(visible(said)), Text(""), sep="\n")
    chosen = spread(num_examples, len(train))
    for number, k in enumerate(chosen, start=1):
        example = examples[int(train.lines[k])]
        console.print(example_view(train[k], example, tokenizer, end_token_id, f"example {number} of {len(chosen)}"))
    legend = Text().append("prompt", PROMPT).append("  ").append("response", RESPONSE).append("  ")
    console.print(legend.append("special token", SPECIAL).append("  ").append("end token", END), Text(""), sep="\n")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "census.json", census.as_dict())
    parts = f"{len(train):>11,} to train on, {num_val:,} held out; places in {folder / 'census.json'}"
    told = (Text("Census", "bold"), Text(visible(census.table())), Text(parts), Text(""))
    console.print(*told, sep="\n", soft_wrap=True)
    console.print(lengths_view(train))
    figures = batch_figures(
        train,
        is_confident,
        order=order,
        global_batch_size=global_batch_size,
        micro_batch_tokens=micro_batch_tokens,
        seed=seed,
        length_window=length_window,
        pad_token_id=tokenizer.pad_token_id,
    )
    console.print(batches_view(figures, layout, halves))


def spread(count: int, examples: int) -> list[int]:
    """Places of so many examples, spread evenly over all."""
    return sorted({round(k) for k in np.linspace(0, examples - 1, min(count, examples))})
