"""Engines: their base class, and how installed engines are found. Imports no library of an engine.

Every engine, ours included, is a subclass of `Engine` with a name through an entry point of the
group `ulskip.engines`. A distribution has presets in the folder `configs/engine/` of the entry
point's package.
"""

import functools
import os
import sys
from collections.abc import Mapping, Set
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from ulskip_cli.core.capabilities import ALL, Need, remedies, texts
from ulskip_cli.core.errors import NotApplicable, UsageError, reason, require_choice
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.options import Choice, option
from ulskip_cli.core.weight_sizes import WeightSizes

if TYPE_CHECKING:
    from ulskip_cli.core.model_metadata import ModelMetadata

GROUP = "ulskip.engines"
AUTO = "auto"  # the engine of a configuration that leaves the choice to the run
# The needs that an engine supports if its session decodes plain views step by step and defines
# `remove`; without it, it does not support LOOK_UPS.
PLAIN = ALL - {
    Need.BEAMS,
    Need.COPY_DRAFTS,
    Need.EARLY_EXIT,
    Need.FIRST_PROMPT,
    Need.PATCHES,
}
# `formats` of unquantized weights
FLOATS: Mapping[str, tuple[float, float]] = {"f32": (32, 32), "f16": (16, 16)}


class Engine(Choice):
    """A library that decodes. Presets are in `configs/engine/`."""

    supports: ClassVar[frozenset[Need]] = PLAIN
    # True if another library than torch decodes, with a copy of the weights; then losses are the
    # library's, too.
    decodes_outside_torch: ClassVar[bool] = True
    # Formats of weights: bits per weight of the layers, and of embedding and head. Engines of torch
    # keep the model's.
    formats: ClassVar[Mapping[str, tuple[float, float]]] = {}
    modules: ClassVar[tuple[str, ...]] = ()  # packages, of which one must be installed
    install: ClassVar[str] = ""  # how to install them
    build_variable: ClassVar[str] = ""  # environment variable that names an own build instead

    weights: str | None = option(None, "format of the weights, e.g. q4_0; null: that of the model")

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, value: str | None) -> str | None:
        if value is None or not cls.is_known:  # the engine of a row that is not installed
            return value
        if not cls.formats:
            raise UsageError(
                f"engine.weights={value} requires an engine of another library; use model.dtype"
            )
        return require_choice("engine.weights", value, cls.formats)

    def session(self) -> type[Any]:
        """Import and return the class of sessions, a `Session` of `engines/base.py`;
        configurations, which contain engines, are made without torch.
        """
        raise NotImplementedError

    def open(self, views: Any, room: Any) -> Any:
        """Return a session for `Views`, with memory for the batches of a `Room`, both of
        `engines/base.py`.
        """
        return self.session()(views, room, self.weights)

    def engine_for(self, needs: Set[Need], model: object = None) -> "tuple[Engine, str | None]":
        """Return the engine for these needs, and the reason if that is not torch. An engine that is
        a choice among several, such as `auto`, returns another one, and raises UsageError if none
        supports the `model`. Nothing else chooses engines.
        """
        return self, f"engine={self.name}"

    def check(self, needs: Set[Need]) -> None:
        """Raise NotApplicable for an unsupported need, and UsageError for missing packages."""
        engine, _ = self.engine_for(needs)
        missing = needs - engine.supports
        if missing:
            raise NotApplicable(
                f"engine={self.name} does not support {texts(missing)};"
                f" use engine=auto or {remedies(missing)}"
            )
        if (
            self.modules
            and not any(find_spec(name) for name in self.modules)
            and not os.environ.get(self.build_variable)
        ):
            raise UsageError(
                f"engine={self.name} requires the package {' or '.join(self.modules)}, which is not"
                f" installed; run: {self.install}"
            )

    @classmethod
    def check_model(cls, config: JsonObject) -> None:
        """Raise UsageError if the model of a config.json is not supported; an engine that cannot
        tell before it has the weights raises it then.
        """

    def sizes(self, metadata: "ModelMetadata", device: str, needs: Set[Need]) -> WeightSizes | None:
        """Return the bytes that a decode step reads in the engine's format; `device` is
        `model.device`.
        """
        weights, width = metadata.weights, metadata.bytes_per_weight
        if weights is None or self.weights is None or width is None:
            return weights
        # bytes in the engine's format for each byte of the model's
        layers, head = (bits / 8 / width for bits in self.formats[self.weights])
        return weights.scaled(layers, head)

    def copied_bytes(self, metadata: "ModelMetadata", device: str, needs: Set[Need]) -> int:
        """Return the bytes of all copies of the weights beside the model: by default for baseline,
        prompts and kept layers.
        """
        sizes = self.sizes(metadata, device, needs)
        return 3 * sizes.total if sizes else 0


def engine_names() -> list[str]:
    """Return the names of installed engines; none is imported."""
    return list(_entry_points(tuple(sys.path)))


def engine_class(name: str) -> type[Engine]:
    """Import the class of an engine; raise UsageError if that fails."""
    points = _entry_points(tuple(sys.path))
    point = points[require_choice("engine", name, points)]
    try:
        kind = point.load()
    except Exception as error:  # another distribution may fail in any way
        raise UsageError(
            f"engine={name}: cannot import {point.value} ({type(error).__name__}: {reason(error)});"
            " install its package again"
        ) from None
    return kind  # type: ignore[no-any-return]


def engine_named(name: str) -> Engine:
    """Return an engine with the model's weight format."""
    return engine_class(name)(name=name)


def plugin_config_dirs() -> list[Path]:
    """Return the folders `configs` of other distributions; none is imported."""
    modules = [point.module for point in _entry_points(tuple(sys.path)).values()]
    packages = {module.partition(".")[0] for module in modules} - {"ulskip_cli"}
    folders = list[Path]()
    for package in sorted(packages):
        spec = find_spec(package)
        if spec and spec.submodule_search_locations:
            folders += [Path(place) / "configs" for place in spec.submodule_search_locations]
    return list(filter(Path.is_dir, folders))


@functools.lru_cache(maxsize=8)
def _entry_points(path: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    """Return the entry points by name; `path` is `sys.path`, so that the cache follows it."""
    return {point.name: point for point in entry_points(group=GROUP)}
