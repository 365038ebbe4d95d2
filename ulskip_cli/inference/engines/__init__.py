"""The decode loops: each engine turns a `BatchRequest` into an `EngineOutput`, both defined in `base.py`.

`fast.py` is the default. `hf_generate.py` calls transformers' `generate` and supports every option. `early_exit.py` and
`speculative.py` implement early exit and speculative decoding.
"""
