"""Write the result of `ulskip tune`: its record in the results folder, and its export."""

import json
import shlex
import shutil
from pathlib import Path

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.export import recipe, request, run, staging
from ulskip_cli.tuning.result import TuneResult

ADAPTER = "skip_adapter"  # folder in an export


def store(result: TuneResult) -> Path:
    """Write the record to `results/NAME/tuning/KEY.json`, and return its path."""
    path = ResultsFolder.of(result.request.config).path / "tuning" / f"{result.request.key}.json"
    write_atomic(path, json.dumps(result.as_json(), indent=1, ensure_ascii=False) + "\n")
    return path


def export_result(result: TuneResult, to: Path, config_dir: Path | None) -> list[str]:
    """Export the chosen layers to a folder, and return lines that describe it.

    Patches that an ordinary checkpoint can contain are merged into one; otherwise the folder holds
    the schedule and the skip adapter, which ulskip applies to the unchanged model.
    """
    if result.patch_kind in request.MERGEABLE:
        results = ResultsFolder.of(result.request.config).path
        return run.summary(
            run.export(
                result.export_overrides, config_dir, request.ExportRequest(to, results=results)
            )
        )
    assert result.skip_adapter is not None
    point = request.resolve(
        result.export_overrides, config_dir, request.ExportRequest(to / recipe.SCHEDULE, "schedule")
    )
    with staging.staged(to, is_folder=True) as folder:
        (folder / recipe.SCHEDULE).write_text(recipe.schedule_file(point).to_json(), "utf-8")
        (folder / ADAPTER).mkdir()
        for file in result.skip_adapter.glob("adapter.*"):
            shutil.copy(file, folder / ADAPTER)
        files = sorted(
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
        )
        record = {
            "made_by": point.made_by,
            "kept_layers": list(result.trial.kept_layers),
            "files": files,
        }
        (folder / staging.RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    command = [
        *result.request.overrides,
        "strategy=custom",
        f"strategy.file={to / recipe.SCHEDULE}",
        "correction=adapter",
        f"correction.path={to / ADAPTER}",
    ]
    return [
        f"wrote the schedule and its skip adapter to {to}; the model's weights stay where they are",
        f"next: {shlex.join(['ulskip', 'run', *command])}",
    ]
