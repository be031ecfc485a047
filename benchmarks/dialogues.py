"""Time to score dialogues: all turns in one forward pass if their token ids allow it, and one pass for each turn.

The dialogues are those of LIMA with several turns. The variants alternate in one process, and their scores must agree
to 1e-5. The last line is JSON.

    python benchmarks/dialogues.py --model FOLDER
"""

import json
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow
import torch
from batches import DEVICE, LAYOUT, SHARED, arguments
from side_by_side import alternate, paired_ratio, table

from sftmix.data.census import Census
from sftmix.data.collate import BatchSettings
from sftmix.data.encoding import Encoder
from sftmix.data.layout import group_shared_prefixes
from sftmix.data.reader import examples_from_rows
from sftmix.data.shards import TOKENS, EncodedExamples, token_columns
from sftmix.data.sources import read_file
from sftmix.data.templates import set_template, template_source
from sftmix.models.language_model import SFTMixLM
from sftmix.models.loading import load_causal_lm
from sftmix.models.tokenizer import load_tokenizer
from sftmix.training.scoring import ScoringSettings, score


def main() -> None:
    """Score in both ways, compare the scores, then the times."""
    parser = arguments(__doc__)
    parser.set_defaults(data=SHARED / "data" / "multiturn" / "lima.jsonl")
    parser.add_argument("--max_seq_len", type=int, default=512, help="tokens of prompt and response")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    if not args.data.is_file():
        raise SystemExit(f"{args.data}: no such file, give dialogues by --data")
    if args.model == "35m":
        raise SystemExit("--model: expected a Hugging Face folder")
    torch.set_num_threads(args.threads)
    tokenizer = load_tokenizer(args.model, None, None)
    set_template(tokenizer, template_source("chatml"))
    found = examples_from_rows(read_file(args.data), Census())
    turns = Counter(e.dialogue for e in found)
    examples = [e for e in found if turns[e.dialogue] > 1]
    fitted = Encoder(tokenizer, args.max_seq_len, "drop").fit(examples, Census())
    encoded = EncodedExamples(pyarrow.table(token_columns(fitted, examples, 0), schema=TOKENS))
    lm = SFTMixLM(load_causal_lm(args.model, None))
    ways = {"together": group_shared_prefixes(encoded), "turn by turn": [[i] for i in range(len(encoded))]}
    nll: dict[str, list[float]] = {}

    def scored(way: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            batches = BatchSettings(LAYOUT, 8192, tokenizer.pad_token_id)
            settings = ScoringSettings(Path(folder), batches, DEVICE, bfloat16=DEVICE.type == "cuda")
            nll[way] = score(lm, encoded, ways[way], settings)

    times = alternate({way: lambda _, way=way: scored(way) for way in ways}, args.repetitions, "dialogues")
    difference = max(abs(a - b) / b for a, b in zip(*nll.values(), strict=True))
    if DEVICE.type == "cpu" and difference > 1e-5:
        raise SystemExit(
            f"the scores differ by {difference:.1e}, expected at most 1e-5: the variants do different work"
        )
    ratio = paired_ratio(times["turn by turn"], times["together"])
    tokens = {way: int(sum(encoded.lengths[run[-1]] for run in runs)) for way, runs in ways.items()}
    print(f"{args.model}: {len(found):,} examples, {len(examples)} of them in dialogues of several answers")
    print(f"{len(encoded)} of these fit into {args.max_seq_len} tokens; largest relative difference {difference:.1e}")
    table(
        ("scored", "sequences", "tokens", "seconds"),
        [
            (way, str(len(runs)), f"{tokens[way]:,}", f"{min(t.wall for t in times[way]):.2f}")
            for way, runs in ways.items()
        ],
    )
    print(f"turn by turn over together: {ratio}\n")
    metrics = {
        "time_ratio": round(ratio.median, 3),
        "token_ratio": round(tokens["turn by turn"] / tokens["together"], 3),
    }
    print(json.dumps({"benchmark": "dialogues", "model": args.model, "device": DEVICE.type, **metrics}))


if __name__ == "__main__":
    main()
