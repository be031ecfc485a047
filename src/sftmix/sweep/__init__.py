"""Sweeps: the rows of an ablation, what is done, what is shared, who runs where."""
