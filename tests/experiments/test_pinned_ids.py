"""The identities of all stored rows, and the ids of points, stay what they were: a changed one
would orphan results that users have stored.

After a deliberate change run `python tests/experiments/test_pinned_ids.py`, which writes the file.
"""

import json
from pathlib import Path

import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.experiments.grid import grid_configs
from ulskip_cli.experiments.ledger import make_jobs
from ulskip_cli.experiments.record import read

PINNED = Path(__file__).parent / "pinned_ids.json"
RESULTS = Path(__file__).parents[2] / "results"
# of points on the bundled model or a shape, which every machine has
POINTS = [
    *["sweep experiment=reproduce", "run ratio=2", "run strategy=full seed=2 limit=5 offset=1"],
    *["run strategy=unified strategy.spacing=reference ratio=3 prompt_layers=kept baseline=false"],
    *["run strategy=skip_decode batch_size=1 max_new_tokens=20", "run strategy=early_exit limit=8"],
    *["run strategy=top_skip engine=torch", "run strategy=bottom_skip engine=transformers"],
    *["run strategy=block_influence calibration.examples=16", "run strategy=one_block ratio=1.5"],
    *["run strategy=search strategy.budget=40", "run strategy=custom strategy.layers=[0,5,11]"],
    *["run correction=patch", "run correction=patch correction.kind=folded limit=9"],
    *["run decoding=beam task.pair=en-de", "run decoding=sample decoding.temperature=0.7 seed=3"],
    *["run decoding=prompt_lookup strategy=full batch_size=1", "run task=cnn_dm model=tiny"],
    *["run answers=false engine=auto"],
    *["run baseline_engine=torch engine=transformers strategy=full", "bench speed.new_tokens=9"],
    *[
        "bench model=random model.path=llama-12x128 batch_size=1,2",
        "bench batch_size=1 ratio=1.5,3",
    ],
]


def stored_identities():
    """The identity of the configuration of each stored row, by folder, in the order of rows."""
    return {
        file.parent.name: [read(line).identity for line in file.read_text("utf-8").splitlines()]
        for file in sorted(RESULTS.glob("*/runs.jsonl"))
    }


def ids(line):
    """The ids of the jobs of a command line, with those of their configurations alone."""
    command, *words = line.split()
    preset = command if command == "bench" else None
    configs = [compose(words)] if command == "run" else grid_configs(words, preset)
    jobs = make_jobs(configs, command=preset or "run")
    return [[job.id, job.config.identity(preset or "run")] for job in jobs]


def test_identities_of_stored_rows_do_not_change():
    assert stored_identities() == json.loads(PINNED.read_text("utf-8"))["rows"]


@pytest.mark.parametrize("line", POINTS)
def test_ids_of_points_do_not_change(line):
    assert ids(line) == json.loads(PINNED.read_text("utf-8"))["points"][line]


if __name__ == "__main__":
    pinned = {"rows": stored_identities(), "points": {line: ids(line) for line in POINTS}}
    PINNED.write_text(json.dumps(pinned, indent=1) + "\n", "utf-8")
