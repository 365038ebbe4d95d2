"""Export of a schedule as a checkpoint, a prefill/decode pair, a GGUF file or a JSON file. Start
with `export_run.py`, which imports no torch, then `checkpoint.py` (a model folder).
"""
