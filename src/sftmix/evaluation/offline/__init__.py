"""Metrics that need no judge: held-out loss, calibration, linearity, and repetition of answers."""
