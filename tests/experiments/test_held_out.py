import pytest

from ulskip_cli.core.config import compose, instantiate
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.held_out import held_out_task


def test_bundled_samples_hold_out_examples_that_no_run_evaluates():
    for overrides in (["task=wmt"], ["task=wmt", "task.pair=en-de"], ["task=cnn_dm", "model=tiny"]):
        config = compose([*overrides, "strategy=search"])
        task, examples = held_out_task(config)
        evaluated = {one.source for one in instantiate(config.task, "task").examples()}
        assert examples and task.data == "held_out"
        assert not evaluated & {one.source for one in examples}
    assert held_out_task(compose(["strategy=unified"])) is None
    assert held_out_task(compose(["strategy=block_influence", f"strategy.scores={[1] * 12}"])) is None


def test_other_data_is_named_or_lies_behind_the_limit(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("".join(f"{name}{i}\n" for i in range(9)))
    files = ["task.dataset=files", f"task.source_file={tmp_path}/a", f"task.reference_file={tmp_path}/a", "strategy=search"]
    with pytest.raises(UsageError, match=r"calibration\.task='{source_file: \.\.\.}'.* below the 9 examples"):
        held_out_task(compose(files))
    _, behind = held_out_task(compose([*files, "limit=4", "calibration.examples=3"]))
    assert [one.source for one in behind] == ["a4", "a5", "a6"]
    other = f"calibration.task={{source_file: {tmp_path}/b, reference_file: {tmp_path}/b}}"
    _, named = held_out_task(compose([*files, other]))
    assert [one.source for one in named] == [f"b{i}" for i in range(9)]


def test_what_is_evaluated_is_not_held_out(tmp_path):
    (tmp_path / "a").write_text("".join(f"a{i}\n" for i in range(9)))
    files = ["task.dataset=files", f"task.source_file={tmp_path}/a", f"task.reference_file={tmp_path}/a", "strategy=search"]
    _, rest = held_out_task(compose([*files, "limit=7", "calibration.task={}"]))
    assert [one.source for one in rest] == ["a7", "a8"]
    with pytest.raises(UsageError, match="not evaluated themselves"):
        held_out_task(compose([*files, "calibration.task={}"]))
