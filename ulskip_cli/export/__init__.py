"""Export a schedule as a checkpoint, a prefill/decode pair, a GGUF file, a mergekit recipe or a
JSON file.

Start with `request.py` (checks of a request before any weight is read), then `run.py` (the formats)
and `checkpoint.py` (a model folder, with `config.py`, `card.py` and `verify.py`). May import
everything except `cli` and `api`; `request`, `recipe`, `staging` and `card` import no torch.
"""
