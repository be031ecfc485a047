"""A whole run, dense and padded against fused and packed: the same loss at each of 200 steps, in float64."""

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from builders import fit, random_examples
from sftmix.data.collate import BatchSettings, collate_step
from sftmix.data.encoding import EncodedExample
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.data.shards import EncodedExamples
from sftmix.functional.equations import LossSettings, mixup_sum, ntp_sum
from sftmix.models.language_model import SFTMixLM
from sftmix.models.loading import load_causal_lm
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.module import SFTMixModule
from sftmix.training.optim import OptimizerSettings, SchedulerSettings, lr_factor

MU, LR, EPOCHS, WARMUP, CLIP = 0.2, 1.5e-4, 40, 0.1, 1.0


def examples() -> list[EncodedExample]:
    """Return forty random examples of the vocabulary of stories260K, which 200 steps learn by heart."""
    return random_examples(40, vocab=512, first_token=3, prompt=(2, 14), response=(2, 14))


def sampler() -> StepSampler:
    return StepSampler(40, [i % 2 == 0 for i in range(40)], SamplerSettings(global_batch_size=8, alpha=0.5, seed=0))


def dense_and_padded(model) -> list[float]:
    """The paper's equations over padded batches, torch's plain AdamW, a loop written out here."""
    lm, encoded = SFTMixLM(model).train(), examples()
    decay = [p for p in lm.parameters() if p.ndim > 1]
    rest = [p for p in lm.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, foreach=False, fused=False)
    total, losses = EPOCHS * 5, []
    for step in (step for epoch in range(EPOCHS) for step in sampler().epoch(epoch)):
        batch = collate_step(step, encoded, [1.0] * 40, BatchSettings("padded", 10**6, pad_token_id=0))
        (micro,) = batch.micro_batches
        for group in optimizer.param_groups:
            group["lr"] = LR * lr_factor(len(losses), total, SchedulerSettings(warmup_ratio=WARMUP))
        hidden, head = lm.hidden(micro.inputs, micro.positions), lm.head
        ntp = ntp_sum(hidden, head, micro.labels, micro.weights)
        loss = (ntp + MU * mixup_sum(hidden, head, micro.labels, micro.lam)) / batch.num_tokens
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(lm.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses


def fused_and_packed(model) -> list[float]:
    """What a run does: two micro-batches a step, the fused loss, the fused optimizer, Lightning's loop."""
    losses, cuts = [], []

    class Watched(SFTMixModule):
        def backward_of_step(self, batch):
            cuts.append(len(batch.micro_batches))
            part = super().backward_of_step(batch)
            losses.append(part.loss.item())
            return part

    module = Watched(
        SFTMixLM(model),
        loss=LossSettings(mu=MU),
        optimizer=OptimizerSettings(lr=LR, weight_decay=0.1, max_grad_norm=CLIP),
        scheduler=SchedulerSettings(warmup_ratio=WARMUP),
    )
    encoded = EncodedExamples.of(examples())
    data = SFTDataModule(sampler(), encoded, EncodedExamples.of([]), BatchSettings("packed", 80, pad_token_id=0))
    fit(module, data, precision="64-true", max_epochs=EPOCHS)
    assert max(cuts) > 1
    return losses


def norm_in_float64(norm, hidden):
    return norm.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)


@pytest.mark.slow
def test_two_hundred_steps_dense_and_padded_equal_fused_and_packed(shared, monkeypatch):
    """All in float64, the norms too: transformers' round to float32, which a last bit elsewhere can tip over."""
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm_in_float64)
    folder = str(shared / "models" / "stories260K")
    want = dense_and_padded(load_causal_lm(folder, None).double())
    got = fused_and_packed(load_causal_lm(folder, None).double())
    assert len(got) == len(want) == 200
    assert sum(want[-5:]) < sum(want[:5]) / 2, "a run that learns nothing would prove nothing"
    for step, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        assert ours == pytest.approx(theirs, rel=1e-9), f"step {step}"
