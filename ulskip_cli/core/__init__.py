"""Configuration, model metadata, files, environment and errors: the base that every other package
builds on.

Modules here import no other package of ulskip_cli, and no torch or transformers at module level.
Start with `config.py` (overrides become a checked `Config`), then read `config_schema.py` and
`model_metadata.py`.
"""
