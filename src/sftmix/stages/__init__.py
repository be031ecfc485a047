"""The three stages of the recipe, what each writes, and how a run goes through them.

`plan` says which artifacts a configuration means, `materials` reads data and tokenizers once for all stages,
`reference`, `confidence` and `target` are the stages, `tuning` is what the first and the last share, `recipe` runs
them.
"""
