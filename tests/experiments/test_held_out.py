import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.held_out import find_held_out
from ulskip_cli.experiments.preflight import resolve


def test_bundled_samples_hold_out_examples_that_no_run_evaluates():
    for overrides in (["task=wmt"], ["task=wmt", "task.pair=en-de"], ["task=cnn_dm", "model=tiny"]):
        config = compose([*overrides, "strategy=search"])
        held_out = find_held_out(config)
        evaluated = {example.source for example in config.task.examples()}
        assert held_out.examples and held_out.task.data == "held_out"
        assert not evaluated & {one.source for one in held_out.examples}
    assert find_held_out(compose(["strategy=unified"])) is None
    assert (
        find_held_out(compose(["strategy=block_influence", f"strategy.scores={[1] * 12}"])) is None
    )


def test_other_data_is_named_or_lies_behind_the_limit(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("".join(f"{name}{i}\n" for i in range(9)))
    files = [
        "task.dataset=files",
        f"task.source_file={tmp_path}/a",
        f"task.reference_file={tmp_path}/a",
        "strategy=search",
    ]
    with pytest.raises(UsageError, match=r"strategy=search.* limit=N .*9.* calibration\.task="):
        find_held_out(compose(files))
    behind = find_held_out(compose([*files, "limit=4", "calibration.examples=3"]))
    assert [one.source for one in behind.examples] == ["a4", "a5", "a6"]
    other = f"calibration.task={{source_file: {tmp_path}/b, reference_file: {tmp_path}/b}}"
    named = find_held_out(compose([*files, other]))
    assert [one.source for one in named.examples] == [f"b{i}" for i in range(9)]


def test_what_is_evaluated_is_not_held_out(tmp_path):
    (tmp_path / "a").write_text("".join(f"a{i}\n" for i in range(9)))
    files = [
        "task.dataset=files",
        f"task.source_file={tmp_path}/a",
        f"task.reference_file={tmp_path}/a",
        "strategy=search",
    ]
    rest = find_held_out(compose([*files, "limit=7", "calibration.task={}"]))
    assert [one.source for one in rest.examples] == ["a7", "a8"]
    with pytest.raises(UsageError, match=r"calibration\.task"):
        find_held_out(compose([*files, "calibration.task={}"]))


def test_offsets_separate_evaluated_and_held_out_examples(tmp_path):
    (tmp_path / "a").write_text("".join(f"a{i}\n" for i in range(9)))
    files = [
        "task.dataset=files",
        f"task.source_file={tmp_path}/a",
        f"task.reference_file={tmp_path}/a",
        "strategy=search",
    ]
    first = compose([*files, "limit=2", "calibration.offset=3", "calibration.examples=2"])
    second = compose([*files, "offset=2", "limit=3", "calibration.examples=2"])
    evaluated = [[one.source for one in resolve(config).examples] for config in (first, second)]
    assert evaluated == [["a0", "a1"], ["a2", "a3", "a4"]]
    assert [
        [one.source for one in find_held_out(config).examples] for config in (first, second)
    ] == [["a5", "a6"]] * 2
    with pytest.raises(UsageError, match=r"offset.*9"):
        resolve(compose([*files, "offset=9"]))
    assert compose([*files, "offset=0", "calibration.offset=0"]).identity == compose(files).identity
    assert (
        len(
            {
                compose([*files, extra]).identity
                for extra in ("limit=2", "offset=1", "calibration.offset=1")
            }
        )
        == 3
    )
