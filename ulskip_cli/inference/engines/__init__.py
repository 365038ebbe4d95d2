"""The decode loops: each engine turns a `BatchRequest` into an `EngineOutput`.

`base.py` defines both types and the `Engine` protocol. `fast.py` is the reference for speed. `hf_generate.py` calls
transformers' `generate` and serves every option. `early_exit.py` and `speculative.py` serve early exit and drafts.
"""
