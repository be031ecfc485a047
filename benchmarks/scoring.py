"""Time of the confidence pass over the time of a bare forward pass of the same real tokens. The last line is JSON.

The confidence pass is the second stage: batches by length, the nll of each response in float64, parts written to disk.
It is compared with a forward of the body and one product of the response tokens with the head; and with the forward of
the model, whose head runs on all positions.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --model FOLDER
"""

import json
import tempfile
from pathlib import Path

import torch
from batches import DEVICE, LAYOUT, arguments, causal_lm, read_work
from lightning.fabric.utilities import move_data_to_device
from side_by_side import alternate, median_seconds, paired_ratio, table

from sftmix.data.collate import BatchSettings, collate_dialogues
from sftmix.data.layout import cut_by_tokens
from sftmix.data.shards import EncodedExamples
from sftmix.models.language_model import SFTMixLM
from sftmix.training.scoring import ScoringSettings, score

BOUND, BATCH_TOKENS = 1.05, 8192


def main() -> None:
    """Measure the pass and the forwards, which alternate."""
    parser = arguments(__doc__)
    parser.add_argument("--repetitions", type=int, default=24)
    parser.add_argument("--examples", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = read_work(args, args.examples)
    lm = SFTMixLM(causal_lm(args.model)).eval()
    lengths = [len(e.input_ids) for e in work.encoded]
    batches = [
        move_data_to_device(collate_dialogues([[work.encoded[i]] for i in batch], LAYOUT, work.pad_token_id), DEVICE)
        for batch in cut_by_tokens(lengths, BATCH_TOKENS)
    ]

    def scored(_):
        with tempfile.TemporaryDirectory() as folder:
            settings = ScoringSettings(
                Path(folder),
                BatchSettings(LAYOUT, BATCH_TOKENS, work.pad_token_id),
                DEVICE,
                bfloat16=DEVICE.type == "cuda",
            )
            score(lm, EncodedExamples.of(work.encoded), [[i] for i in range(len(work.encoded))], settings)

    @torch.no_grad()
    def bare(_):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            for batch in batches:
                states = [
                    lm.causal_lm.base_model(ids, position_ids=positions, use_cache=False)[0].flatten(0, 1)
                    for ids, positions, *_ in batch.inputs
                ]
                for hidden in torch.cat(states)[batch.positions].split(1024):
                    hidden @ lm.head.weight.T

    @torch.no_grad()
    def own(_):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            for batch in batches:
                for ids, positions, *_ in batch.inputs:
                    for k in range(0, len(ids), 16):  # the logits of a whole batch do not fit
                        lm.causal_lm(ids[k : k + 16], position_ids=positions, use_cache=False)

    times = alternate({"confidence pass": scored, "bare": bare, "own forward": own}, args.repetitions, "scoring")
    real = sum(lengths)
    padding = 1 - real / sum(i.input_ids.numel() for b in batches for i in b.inputs)
    where = f"{args.model}, {DEVICE.type}, {args.threads} threads"
    print(f"{where}: {len(lengths)} examples, {real} tokens, padding {padding:.1%}")
    rows = [
        (name, f"{real / median_seconds(taken):.0f}", str(paired_ratio(times["confidence pass"], taken)))
        for name, taken in times.items()
    ]
    table(("forward", "real tok/s", "confidence pass / forward"), rows)
    ratio = paired_ratio(times["confidence pass"], times["bare"])
    print(
        json.dumps(
            {
                "benchmark": "scoring",
                "model": args.model,
                "device": DEVICE.type,
                "time_ratio": round(ratio.median, 4),
                "time_interval": [round(ratio.low, 4), round(ratio.high, 4)],
                "to_own_forward": round(paired_ratio(times["confidence pass"], times["own forward"]).median, 4),
                "bound": BOUND,
                "time": ratio.verdict(BOUND),
            }
        )
    )


if __name__ == "__main__":
    main()
