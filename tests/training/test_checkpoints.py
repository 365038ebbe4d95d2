import pytest

from ulskip_cli.training.run import last_checkpoint


def make(folder, step, state='{"global_step": 1}'):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    if state is not None:
        (checkpoint / "trainer_state.json").write_text(state)


def test_the_newest_checkpoint_is_continued(tmp_path):
    make(tmp_path, 9), make(tmp_path, 10)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize("state", [None, '{"global_step": '])
def test_a_checkpoint_that_a_killed_process_left_is_removed(state, tmp_path):
    make(tmp_path, 10, state)
    assert last_checkpoint(tmp_path) is None
    make(tmp_path, 9), make(tmp_path, 10, state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert not (tmp_path / "checkpoint-10").exists()
