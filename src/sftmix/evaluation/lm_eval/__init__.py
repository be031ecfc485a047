"""Tasks of lm-evaluation-harness (the package `lm_eval`) by name: its prompts and scores, our models and journal."""
