"""Export a schedule as a checkpoint, a prefill/decode pair, a GGUF file or a JSON file.

Start with `run.py` (the request, the formats and the replaced target), then `checkpoint.py` (a
model folder) and `card.py` (its card). May import everything except `tuning`, `cli` and `api`;
`run` and `card` import no torch.
"""
