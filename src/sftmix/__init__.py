"""SFTMix: instruction tuning with Mixup between confident and unconfident examples (arXiv 2410.05248)."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "data.census": ("Census",),
    "data.collate": ("BatchSettings",),
    "data.demo": ("demo_rows", "demo_texts"),
    "data.encoding": ("Encoder",),
    "data.example": ("is_held_out",),
    "data.pairing": ("SamplerSettings", "StepSampler", "random_subsets"),
    "data.reader": ("examples_from_rows",),
    "data.rows": ("Row",),
    "data.shards": ("EncodedExamples",),
    "data.templates": ("set_template", "template_source"),
    "distributed.checkpoint_io": ("CheckpointFolderIO",),
    "functional.confidence": ("split_by_confidence",),
    "functional.equations": ("LossSettings", "dense_sftmix_loss"),
    "functional.fused": ("fused_sftmix_loss",),
    "models.language_model": ("SFTMixLM",),
    "models.loading": ("load_causal_lm",),
    "models.tiny": ("tiny_llama", "tiny_tokenizer"),
    "training.datamodule": ("SFTDataModule",),
    "training.diagnostics": ("MixupDiagnostics",),
    "training.module": ("SFTMixModule",),
    "training.optim": ("OptimizerSettings", "SchedulerSettings"),
}
_HOMES = {name: f"sftmix.{module}" for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, which a config error must not wait for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
