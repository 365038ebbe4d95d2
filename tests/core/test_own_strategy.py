"""A strategy class of a user, named by a file in the folder of --config-dir."""

import json
import sys

import pytest

from ulskip_cli.core.config import StoredConfig, compose, use_config_dir
from ulskip_cli.experiments.point import Resolver
from ulskip_cli.experiments.record import Record, Settings, read
from ulskip_cli.report.rows import grouped

MODULE = '''
from typing import Literal

from ulskip_cli.core.options import option
from ulskip_cli.core.strategy import CalibrationResult, Strategy


class Loudest(Strategy):
    """Keep the first layers and one more, which held-out examples choose."""

    last: int | None = option(None, "the last kept layer; null: the run chooses it", ge=0)
    side: Literal["left", "right"] = option("left", "the side")
    calibrated = ("last",)
    calibrated_for = ("num_kept",)
    stand_in = "the last layer"

    def kept_layers(self, request):
        last = request.num_layers - 1 if self.last is None else self.last
        return (*range(request.num_kept - 1), last)

    def calibrate(self, request, held_out):
        first = range(request.num_kept - 1)
        choices = (request.num_layers - 2, request.num_layers - 1)
        losses = {last: held_out.decode_loss((*first, last)) for last in choices}
        return CalibrationResult({"last": min(losses, key=losses.get)}, {"tried": len(losses)})
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a config folder whose strategy `loudest` has a class in an importable module."""
    (tmp_path / "users_strategy.py").write_text(MODULE)
    (tmp_path / "configs" / "strategy").mkdir(parents=True)
    preset = "_target_: users_strategy.Loudest\nname: loudest\ndescription: my own\nside: right\n"
    (tmp_path / "configs" / "strategy" / "loudest.yaml").write_text(preset)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "configs"


def test_it_is_calibrated_and_run(folder, ulskip, overrides):
    overrides = [*overrides, "calibration.examples=2", "strategy=loudest", "--config-dir", folder]
    code, out, err = ulskip("run", "--json", *overrides)
    assert code == 0, err
    row = json.loads(out.splitlines()[-1])
    assert row["calibration"]["options"]["last"] in (4, 5)
    assert row["kept_layers"] == [0, 1, row["calibration"]["options"]["last"]]
    assert row["config"]["strategy"]["side"] == "right"


def test_rows_of_different_options_are_never_taken_for_one_another(folder):
    options = {side: ["strategy=loudest", f"strategy.side={side}"] for side in ("left", "right")}
    use_config_dir(folder)
    configs = {side: compose(words) for side, words in options.items()}
    configs["given"] = compose([*options["left"], "strategy.last=5"])
    again = compose(["strategy=loudest"])  # its preset sets the side
    use_config_dir(None)  # as other commands read the rows
    records = [Record.joined(Settings.of(config, name)) for name, config in configs.items()]
    stored = [read(json.dumps(record.to_row())) for record in records]
    assert stored == records
    identities = [record.identity for record in stored]
    assert identities == [config.identity() for config in configs.values()]
    assert len({*identities}) == 3
    (group,) = grouped(stored)
    assert len({group.approach(record) for record in stored}) == 3
    assert again.identity() == configs["right"].identity()
    assert StoredConfig.of(again) == StoredConfig.of(configs["right"])


@pytest.mark.parametrize(
    ("options", "edit", "changes"),
    [
        (["strategy.last=9"], ("*range(request.num_kept - 1), last", "0, 1, last"), True),
        (["strategy.last=9"], ("Keep the first", "Keep all first"), False),
        ([], ("losses.get", "losses.__getitem__"), True),  # its layers are not known yet
    ],
)
def test_an_edited_strategy_makes_another_point(folder, options, edit, changes):
    def ids():
        """The identifiers of a run and a benchmark, as a new process finds them."""
        sys.modules.pop("users_strategy", None)
        use_config_dir(folder)
        words = ["strategy=loudest", *options]
        return [
            Resolver().resolve(compose(words, command), command).id for command in ("run", "bench")
        ]

    before = ids()
    file = folder.with_name("users_strategy.py")
    file.write_text(file.read_text().replace(*edit) + "\n")
    assert [new != old for new, old in zip(ids(), before, strict=True)] == [changes] * 2
