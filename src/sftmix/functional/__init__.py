"""The loss and the confidence of SFTMix as functions of tensors.

- `equations`: the paper's equations in dense form, and the settings of the loss. Start here.
- `fused`: the same loss and gradient without a matmul for the Mixup term.
- `confidence`: perplexity, confidence, and the split at the median (Step 1).
- `noise`: NEFTune.
"""
