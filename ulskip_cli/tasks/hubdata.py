"""Rows of a dataset, from the Hugging Face hub or a local folder, through `datasets`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ulskip_cli.core import hub
from ulskip_cli.core.errors import UsageError


def is_hub_name(name: str) -> bool:
    """Whether a dataset's name is a hub id (owner/name) or a local folder."""
    return "/" in name or Path(name).expanduser().is_dir()


def rows(name: str, subset: str | None, split: str, likely: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All rows of one split.

    Args:
        name: hub id or local folder of Parquet, CSV or JSON files.
        subset: the dataset's configuration; None: the only one, or one of `likely`.
        split: for example `test`.
        likely: subsets to take where none is named.

    Raises:
        UsageError: there is no such dataset, subset or split, or it cannot be had from here.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    local = Path(name).expanduser()
    is_local = local.is_dir()
    try:
        if not is_local:
            hub.check_reachable()
        source = str(local) if is_local else name
        chosen = subset or _subset(datasets.get_dataset_config_names(source), likely, name)
        found = datasets.load_dataset(source, chosen, split=split)
    except UsageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UsageError(
            f"cannot read dataset '{name}' ({reason}); see task.split and task.subset, or give a folder or files of your own"
        ) from None
    return list(found)


def _subset(known: Sequence[str], likely: Sequence[str], name: str) -> str | None:
    """The subset to take where none was named."""
    match = [subset for subset in likely if subset in known]
    if match or len(known) < 2:
        return match[0] if match else next(iter(known), None)
    raise UsageError(f"dataset '{name}' has subsets; name one as task.subset: {', '.join(known)}")
