"""Tasks: examples, the prompts made from them, and the metrics that score the answers.
`core/task.py` is the interface; start with `jsonl.py`. torch and transformers are imported only
inside functions.
"""
