"""A loader of recipe scripts as modules, so that tests can call their functions."""

import importlib.util
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"


def load_recipe(path):
    """Import a script under recipes/ as a module."""
    name = path.replace("/", "_").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, RECIPES / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
