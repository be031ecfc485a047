"""Sweeps: the runs of one command, the stages they share, and the processes that make them."""

CONFIG_FILE = "--config-file"  # Option of train.py: file of a resolved config, which is not composed again
