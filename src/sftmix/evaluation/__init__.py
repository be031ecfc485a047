"""Evaluation of a model: a folder for each suite, the models that answer (`generators`), and the judges (`judge`).

A suite is a module `suite.py` with `check(session, suite)`, which refuses what is missing before anything is loaded or
asked, and `evaluate(session, suite)`, which returns its evaluations. User errors are InputErrors of one line.
"""
