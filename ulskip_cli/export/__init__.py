"""Export a schedule as a checkpoint, a prefill/decode pair, a GGUF file or a JSON file.

Start with `run.py` (the request, the formats and the replaced target), which imports no torch, then
`checkpoint.py` (a model folder). May import everything except `tuning`, `cli` and `api`.
"""
