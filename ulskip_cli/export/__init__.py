"""Export of a schedule: as a checkpoint, a prefill/decode pair, a GGUF file, a mergekit recipe or a JSON file.

`request.py` checks a request before any weight is read and `run.py` dispatches on its format: start reading there.
`checkpoint.py` writes a model folder from `config.py`, `tensors.py` and `card.py`; `verify.py` compares it with the view.
Everything is written in a scratch folder of `staging.py`, so that a failure leaves nothing behind.
The package may import everything except `cli` and `api`; `request`, `recipe`, `staging` and `card` import no torch.
"""
