"""Figures of the paper and of the stability of a split: numbers first, then drawn as PNG and PDF."""
