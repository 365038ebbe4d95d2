"""The engine `openvino`: views traced with the KV cache as states, decoded by OpenVINO on the
CPU.
"""

from typing import ClassVar

from ulskip_cli.core.engines import FLOATS, Engine


class OpenVino(Engine):
    """OpenVINO."""

    formats: ClassVar = {**FLOATS, "int8": (8, 8), "int4": (4.25, 8)}
    session = "ulskip_cli.engines.openvino.session:OpenVinoSession"
    modules = ("openvino",)
    install = "pip install 'ulskip[openvino]'"
