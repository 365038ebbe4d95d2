"""The defaults of all keys, which identities do not hash, are those of a committed list."""

import json
from pathlib import Path

from pydantic_core import to_jsonable_python

from ulskip_cli.core.config import CHOICES, group_choices, preset_class
from ulskip_cli.core.config_reference import keys_of
from ulskip_cli.core.config_schema import Config, TrainingConfig, TuneConfig
from ulskip_cli.core.fingerprint import VERSION

FILE = Path(__file__).with_name("defaults.json")


def defaults():
    """Return VERSION and the default of every key, by class."""
    classes = [Config, TuneConfig, TrainingConfig]
    for group in CHOICES:
        for name in group_choices(group):
            classes.append(preset_class(group, name))
    values = {
        kind.__name__: {key.name: key.default for key in keys_of(kind, {})}
        for kind in classes
        if kind.__module__.startswith("ulskip_cli.")  # and not a plug-in's
    }
    return to_jsonable_python({"VERSION": VERSION, **dict(sorted(values.items()))})


def test_no_default_changes_unnoticed():
    assert defaults() == json.loads(FILE.read_text("utf-8")), (
        f"write the list anew with `python tests/core/{Path(__file__).name}`; if not only a key is"
        " new or gone, but a default changed, raise VERSION in core/fingerprint.py too, because"
        " identities do not hash defaults"
    )


if __name__ == "__main__":
    FILE.write_text(json.dumps(defaults(), indent=1, ensure_ascii=False) + "\n", "utf-8")
