from ulskip_cli.tuning.search import StepLog


def test_a_step_that_a_crash_cut_runs_again(tmp_path):
    path = tmp_path / "log.jsonl"
    log = StepLog(path)
    log.once("a", lambda: 1)
    log.once("b", lambda: 2)
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    again = StepLog(path)
    assert (again.once("a", lambda: 7), again.once("b", lambda: 8)) == (1, 8)
    assert (StepLog(path).once("a", lambda: 9), StepLog(path).once("b", lambda: 9)) == (1, 8)


def test_the_time_of_finished_steps_counts_after_an_interruption(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": "a", "value": {"refused": "no\\u001b[2J"}, "seconds": 600.0}\n')
    assert 10 <= StepLog(path).minutes < 11
    assert StepLog(path).once("a", dict) == {"refused": "no\\x1b[2J"}
