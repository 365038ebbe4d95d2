"""Tasks: examples, the prompts made from them, and the metrics that score the answers.

`core/task.py` is the interface; start with `jsonl.py`, the shortest task. The package imports only
`ulskip_cli.core`, and torch or transformers only inside functions.
"""
