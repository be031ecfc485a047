"""The stages of the pipeline: reference, confidence and target, what each writes, and what they share.

`pipeline` runs the stages. `plan` says which artifacts a config means, `fingerprint` what their content depends on, and
`inputs` and `checks` refuse what cannot be run. `context`, `data` and `models` are what the stages are run with,
`train` is what reference and target share, and `rank` starts the processes of a stage.
"""
