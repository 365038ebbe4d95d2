"""The engine `transformers`: its `generate` in two phases, with support for every option."""

from typing import ClassVar

from ulskip_cli.core.capabilities import ALL, Need
from ulskip_cli.core.engines import Engine


class Transformers(Engine):
    """The `generate` method of transformers."""

    supports: ClassVar[frozenset[Need]] = ALL - {
        Need.LAYER_DRAFTS,
        Need.EARLY_EXIT,
        Need.COMPILATION,
    }
    is_runtime = False
    session = "ulskip_cli.engines.transformers.session:TransformersSession"
