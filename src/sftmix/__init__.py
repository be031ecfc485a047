"""SFTMix: instruction tuning with Mixup between confident and unconfident examples (arXiv 2410.05248)."""

__version__ = "0.1.0"
