"""A loader of recipe scripts as modules, so that tests can call their functions."""

import importlib.util
from pathlib import Path
from types import ModuleType

RECIPES = Path(__file__).parent.parent / "recipes"


def load_recipe(path: str) -> ModuleType:
    """Import a script under recipes/ as a module."""
    spec = importlib.util.spec_from_file_location(
        path.replace("/", "_").removesuffix(".py"), RECIPES / path
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
