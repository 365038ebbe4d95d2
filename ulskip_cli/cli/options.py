"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, e.g. task=wmt ratio=2.0", show_default=False)]
TrainOverrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value, e.g. model.path=DIR train=lora train.ratios=2 output=runs/mine", show_default=False),
]
ConfigDir = Annotated[Path | None, typer.Option(help="A folder of your own config groups, e.g. DIR/strategy/mine.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line of standard output.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")]
