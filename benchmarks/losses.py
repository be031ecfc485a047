"""Time of the gradient of a step under each loss, over that of next-token prediction on the same batch.

IR-DRO takes one more forward pass, unless it weights by the losses of the previous epoch. All others take the matmuls
of next-token prediction. The last line is JSON.

    python benchmarks/losses.py
    python benchmarks/losses.py --model FOLDER --repetitions 20
"""

import json
from types import SimpleNamespace
from typing import Any

import torch
from batches import DEVICE, arguments, batch_of, causal_lm, read_work
from side_by_side import alternate, median_seconds, paired_ratio, table

from sftmix.functional.equations import FORMS, TOKEN_WEIGHTS, LossSettings
from sftmix.models.language_model import SFTMixLM
from sftmix.training.module import SFTMixModule
from sftmix.training.optim import OptimizerSettings

LOSSES = {
    "NTP": LossSettings(mu=None),
    "label smoothing": LossSettings(mu=None, label_smoothing=0.1),
    **{name: LossSettings(mu=None, token_weight=name) for name in TOKEN_WEIGHTS},
    "IR-DRO": LossSettings(mu=None, dro_temperature=1.0),
    "IR-DRO, previous epoch": LossSettings(mu=None, dro_temperature=1.0, dro_losses="previous_epoch"),
    **{f"SFTMix, form={form}": LossSettings(mu=0.2, form=form) for form in FORMS},
}


def main() -> None:
    """Compare the losses."""
    parser = arguments(__doc__)
    parser.add_argument("--repetitions", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work, lm = read_work(args), SFTMixLM(causal_lm(args.model)).train()
    batches = [batch_of(work, step) for step in work.steps]
    trainer = SimpleNamespace(strategy=SimpleNamespace(), world_size=1, global_step=0, current_epoch=0)
    SFTMixModule.trainer = property(lambda _: trainer)  # type: ignore[assignment, misc, method-assign]

    def gradient_of(loss: LossSettings) -> Any:
        module: Any = SFTMixModule(lm, loss=loss, optimizer=OptimizerSettings(lr=1e-4))
        module.manual_backward = torch.Tensor.backward

        def gradient(repetition: int) -> None:
            trainer.current_epoch = repetition // len(batches)
            lm.zero_grad()
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
                module.backward_of_step(batches[repetition % len(batches)])
            module._pending.clear()

        return gradient

    times = alternate({name: gradient_of(loss) for name, loss in LOSSES.items()}, args.repetitions, "losses")
    ratios = {name: paired_ratio(of_loss, times["NTP"]) for name, of_loss in times.items()}
    print(f"{args.model}, {DEVICE.type}, {args.threads} threads: the gradient of a step of 32 examples of Alpaca")
    table(
        ("loss", "seconds", "over NTP"),
        [(name, f"{median_seconds(of_loss):.3f}", str(ratios[name])) for name, of_loss in times.items()],
    )
    report = {name: [round(value, 4) for value in ratio] for name, ratio in ratios.items()}
    print(json.dumps({"benchmark": "losses", "model": args.model, "ratios": report}))


if __name__ == "__main__":
    main()
