"""Configuration, model metadata, files, environment and errors: what every other package may use.

Modules here know nothing of layers, tasks or tensors and import neither torch nor transformers.
Start with `config.py` (overrides become a checked `Config`), then `config_schema.py` (every key) and `model_metadata.py`
(what config.json and the safetensors headers say).
"""
