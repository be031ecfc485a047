"""The training loop on Lightning, and the scoring loop."""
