"""The token ids of a large data set, kept under `root` so that they are computed once for all runs that share them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sftmix.artifacts import Artifact, making, read_json, read_table, write_json, write_table
from sftmix.data.census import Census
from sftmix.data.encoding import ENCODING, EncodedExample, Encoder
from sftmix.data.example import Example

FEWEST_EXAMPLES = 5000  # fewer are tokenized in a second or two, each time anew


def encode_once(
    encoder: Encoder, examples: Sequence[Example], census: Census, *, root: Path, title: str, show_progress: bool
) -> list[EncodedExample]:
    """The examples as token ids, from an earlier run's file where one encoded the very same; adds to the census.

    Args:
        encoder: renders and tokenizes.
        examples: what to encode.
        census: takes down each one's end.
        root: folder of all artifacts.
        title: readable part of the cache's name.
        show_progress: with a bar.

    Raises:
        InputError: an example is too long and the encoder's `overlong` is error.
    """
    if len(examples) < FEWEST_EXAMPLES:
        return encoder.encode(examples, census, show_progress)
    artifact = Artifact(root, f"tokens-{title}", _fields(encoder, examples))
    with making(artifact) as folder:
        if folder is not None:
            own = Census()
            encoded = encoder.encode(examples, own, show_progress)
            columns = {
                "example_id": [e.example.id for e in encoded],
                "input_ids": [e.input_ids for e in encoded],
                "num_prompt_tokens": [e.num_prompt_tokens for e in encoded],
            }
            write_table(folder / "tokens.parquet", columns)
            write_json(folder / "census.json", own.state())
    known = {e.id: e for e in examples}
    table = read_table(artifact.folder / "tokens.parquet")
    census.add(read_json(artifact.folder / "census.json"))
    rows = zip(table["example_id"], table["input_ids"], table["num_prompt_tokens"], strict=True)
    return [EncodedExample(known[i], tuple(ids), num_prompt_tokens) for i, ids, num_prompt_tokens in rows]


def _fields(encoder: Encoder, examples: Sequence[Example]) -> dict[str, object]:
    """Everything that the ids depend on, and the places that the census names."""
    tokenizer = encoder.tokenizer
    backend = "\n".join((tokenizer.backend_tokenizer.to_str(), str(tokenizer.special_tokens_map)))
    listed = "\n".join(f"{e.id} {e.source} {e.row}" for e in examples)
    return {
        "kind": "tokens",
        "encoding": ENCODING,
        "examples": hashlib.sha256(listed.encode()).hexdigest(),
        "tokenizer": hashlib.sha256(backend.encode()).hexdigest(),
        "template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        "max_seq_len": encoder.max_seq_len,
        "overlong": encoder.overlong,
    }
