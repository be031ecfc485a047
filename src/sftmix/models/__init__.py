"""Causal language models and their tokenizers: loading, the loss-bearing forward, generation, export."""
