"""A rank's part of the certificate: the gradients of one step of NTP and SFTMix, taken in one way."""

from dataclasses import replace

from sftmix.artifacts.files import write_json
from sftmix.data.collate import BatchSettings
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.invariance.variants import Way, random_halves
from sftmix.stages.language_model import loss_settings, place, prepare_language_model
from sftmix.stages.split import partner_order, split_examples
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.step_gradient import step_gradient


def write_gradients(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    """Write `ntp.safetensors`, `sftmix.safetensors` and `losses.json`."""
    config, device, ranks, way = context.config, rank.device, rank.ranks, Way(**spec.fields)
    recipe, model = config.recipe, config.model
    encoded = context.encoded(model)
    mixup = recipe.mixup
    if config.needs_split and not config.needs_confidence:
        halves = split_examples(context, None).train
    else:
        halves = random_halves(len(encoded.train), config.seed)
    losses: dict[str, float] = {}
    for name in ("ntp", "sftmix"):
        is_mixed = name == "sftmix"
        sampler = StepSampler(
            len(encoded.train),
            halves if is_mixed else None,
            SamplerSettings(
                global_batch_size=recipe.global_batch_size, seed=config.seed, alpha=mixup.alpha if mixup else 0.5
            ),
            pair_order=partner_order(config, encoded.train, {}) if is_mixed else None,
        )
        tokens = sum(int(encoded.train.lengths[i]) for i in sampler.epoch(0)[0].examples)
        share = tokens // device.num_local
        lm, layout = prepare_language_model(
            lambda w: context.tuned_causal_lm(model, config.seed, weights=w), config.trainer, rank
        )
        if way.checkpointing or config.trainer.activation_checkpointing == "full":
            lm.checkpoint_activations()
        if device.strategy == "ddp":
            place(lm, rank)
        data = SFTDataModule(
            sampler,
            encoded.train,
            [1.0] * len(encoded.train),
            encoded.val,
            BatchSettings(
                layout,
                _micro_batch_tokens(way, config.trainer.micro_batch_tokens, share),
                encoded.tokenizer.pad_token_id,
                recipe.ntp.prompt_weight,
            ),
            epochs=1,
            pin_memory=False,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        loss = loss_settings(mixup, config.trainer)
        losses[name] = step_gradient(
            lm,
            data,
            spec.folder / f"{name}.safetensors",
            loss=replace(loss, mu=(mixup.mu if mixup else 0.2) if is_mixed else None, chunk_bytes=way.chunk_bytes),
            ranks=ranks,
            strategy=device.strategy,
            accelerator=device.accelerator,
            precision=device.precision,
            neftune_alpha=recipe.neftune_alpha,
        )
        del lm, data
        device.release()
    if ranks.is_first:
        write_json(spec.folder / "losses.json", {**losses, "layout": layout})


def _micro_batch_tokens(way: Way, own: int, share: int) -> int:
    """The run's own, or a part of a rank's share of the step where the way cuts finer."""
    return own if way.parts == 1 else min(own, max(1, share // way.parts))
