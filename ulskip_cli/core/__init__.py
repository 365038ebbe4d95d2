"""Configuration, model metadata, files, environment and errors: the base that every other package builds on.

Modules here know nothing of strategies, tasks or tensors, import no other package of ulskip_cli, and import neither
torch nor transformers at module level. Start with `config.py` (overrides become a checked `Config`), then read
`config_schema.py` (every key) and `model_metadata.py` (the contents of config.json and of safetensors headers).
"""
