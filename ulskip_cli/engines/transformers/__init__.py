"""The engine `transformers`: its `generate` in two phases."""

from ulskip_cli.core.capabilities import ALL, DRAFTS, Need
from ulskip_cli.core.engines import Engine


class Transformers(Engine):
    """The `generate` method of transformers."""

    supports = ALL - DRAFTS - {Need.EARLY_EXIT}
    is_runtime = False
    session = "ulskip_cli.engines.transformers.session:TransformersSession"
