from ulskip_cli import __version__, environment


def test_code_and_machine_are_told():
    code, machine = environment.code(), environment.machine()
    assert code["ulskip"] == __version__
    assert code["packages"]["torch"]
    assert set(code) >= {"git_commit", "git_dirty"}
    assert machine["threads"] >= 1
    assert machine["instruction_set"]


def test_a_process_has_been_running():
    assert 0 < environment.process_seconds() <= environment.process_seconds()
