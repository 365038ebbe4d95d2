"""The decode loops: each engine turns a `BatchRequest` into an `EngineOutput`.

`base.py` defines both types and the interface. `fast.py` is the reference for speed, `hf_generate.py` serves every option of
transformers, `early_exit.py` and `speculative.py` serve the strategies of their names.
"""
