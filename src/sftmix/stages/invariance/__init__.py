"""mode=certify: one optimizer step, computed in every way that must not matter."""
