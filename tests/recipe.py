"""Loading a recipe's script as a module, so that its pure parts can be tested."""

import importlib.util
from pathlib import Path
from types import ModuleType

RECIPES = Path(__file__).parent.parent / "recipes"


def load_recipe(path: str) -> ModuleType:
    """The module of a script under recipes/."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), RECIPES / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
