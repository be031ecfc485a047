"""The suites as `eval.py` runs them: what is evaluated, what is lacking, and each suite's settings opened."""
