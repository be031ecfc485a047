"""Sweeps: the runs of one command, the stages they share, and the processes that make them."""

CONFIG_FILE = "--config-file"  # option of train.py: a resolved configuration, which is not composed again
