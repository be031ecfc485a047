"""Evaluation of a model: one folder for each suite, the models that answer, and the judges."""
