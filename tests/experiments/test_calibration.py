import json
from unittest.mock import Mock

import pytest

from ulskip_cli.core.config import changed_choice, compose
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.base import Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.scoring import ForcedTexts
from ulskip_cli.experiments import calibration
from ulskip_cli.experiments.calibration import HeldOutEvaluator
from ulskip_cli.experiments.point import resolve
from ulskip_cli.experiments.runner import Models
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.loading import load
from ulskip_cli.strategies.plan import make_plan


@pytest.fixture
def ready(tmp_path, model_folder):
    """A configuration, its loaded model and its held-out workload."""

    def make(*overrides):
        small = ["model=hf", f"model.path={model_folder}", "calibration.examples=6"]
        small.append("max_new_tokens=5")
        config = compose([*small, f"results_dir={tmp_path}", *overrides])
        point = resolve(config)
        workload = Models().encode(point, point.held_out)
        return config, load(config.model), workload

    return make


def calibrate_strategy(*parts):
    return HeldOutEvaluator(*parts).calibrate_strategy()


def test_what_is_found_is_stored_and_used_again(ready, tmp_path, monkeypatch):
    config, loaded, work = ready("strategy=block_influence", "ratio=2")
    plan, row = calibrate_strategy(config, loaded, work, ProgressCallback())
    found = changed_choice(config.strategy, row["options"], "")
    assert plan == make_plan(config.replace(strategy=found), loaded.metadata)
    assert not plan.warnings and row["examples"] == 6
    file = tmp_path / "default" / "calibrations" / f"{row['id']}.json"
    assert json.loads(file.read_text()) == row
    monkeypatch.setattr(HeldOutEvaluator, "state_similarity", lambda self: pytest.fail("again"))
    other = config.replace(ratio=3.0, batch_size=2)
    again, _ = calibrate_strategy(other, loaded, work, ProgressCallback())
    assert again == make_plan(other.replace(strategy=found), loaded.metadata)
    text = file.read_text()
    file.write_text("{")
    with pytest.raises(pytest.fail.Exception):
        calibrate_strategy(config, loaded, work, ProgressCallback())
    file.write_text(text)
    monkeypatch.setattr(calibration, "CALIBRATION", 0)  # another format
    with pytest.raises(pytest.fail.Exception):
        calibrate_strategy(config, loaded, work, ProgressCallback())


def test_a_search_lowers_the_loss_that_rows_report(ready):
    config, loaded, work = ready("strategy=search", "strategy.budget=6", "ratio=2")
    plan, row = calibrate_strategy(config, loaded, work, ProgressCallback())
    first, last = row["notes"]["path"][0], row["notes"]["path"][-1]
    assert row["notes"]["tried"] <= 6 and last["loss"] <= first["loss"]
    references = [example.response_ids for example in work.encoded]
    texts = ForcedTexts(work.prompts, references, BatchSize(3), work.pad_token_id)
    own = texts.scores(Decoder(Views.of(loaded.model, plan)))
    assert own.decode_loss == pytest.approx(last["loss"], rel=1e-4)


@pytest.mark.parametrize(("asked", "most"), [(2, 1), (6, 3), (63, 31), (64, 32), (80, 32)])
def test_prompts_have_at_most_half_as_many_own_answers_as_there_are_examples(
    ready, monkeypatch, asked, most
):
    def generated(model, prompts, options, *more):
        seen.append(options.samples)
        return [[[5]] * options.samples for _ in prompts]

    seen = []
    monkeypatch.setattr(calibration, "generate_own_responses", generated)
    monkeypatch.setattr(HeldOutEvaluator, "_fit_patches", Mock(side_effect=InterruptedError))
    monkeypatch.setattr(calibration, "ENOUGH_TOKENS", 10**6)
    config, loaded, work = ready("correction=patch", "ratio=2", f"calibration.examples={asked}")
    plan = make_plan(config, loaded.metadata)
    with pytest.raises(InterruptedError):
        HeldOutEvaluator(config, loaded, work, ProgressCallback()).calibrate_patches(plan)
    assert seen == [1, most]


def test_a_threshold_is_found_at_the_batch_size_of_the_run(ready, spy):
    generate, ids = spy(Decoder, "answer_all"), set()
    for batch_size in (1, 3):
        config, loaded, work = ready("strategy=early_exit", "ratio=2", f"batch_size={batch_size}")
        ids.add(calibrate_strategy(config, loaded, work, ProgressCallback())[1]["id"])
        assert {call.args[3].used for call in generate.call_args_list} == {batch_size}
        generate.reset_mock()
    assert len(ids) == 2


def test_a_calibration_depends_on_the_seed_and_on_no_setting_that_it_does_not_read(ready):
    config, loaded, work = ready("strategy=block_influence", "ratio=2")
    ids = []
    for change in ({}, {"ratio": 3.0, "limit": 2}, {"seed": 2}, {"prompt_layers": "kept"}):
        changed = config.replace(**change)
        ids.append(calibrate_strategy(changed, loaded, work, ProgressCallback())[1]["id"])
    assert ids[0] == ids[1] and len({*ids}) == 3


def test_given_options_need_no_calibration(ready):
    assert ready("strategy=skip_decode", "strategy.horizon=7")[-1] is None
