import pytest

pytest.importorskip("lm_eval")

from ulskip_cli.cli import run_commands as command_module

BAD = [
    (["ratoi=2", "--", "--tasks", "x"], "ratio"),
    (["limit=3", "--", "--tasks", "x"], "does not read limit"),
    (["--tasks", "x"], "unknown option --tasks"),
    (["--", "x", "--tasks", "x"], "'x'"),
    (["--", "--limit", "2"], "`-- --tasks arc_easy`"),
    ([], "`-- --tasks arc_easy`"),
]
BAD_OPTIONS = [
    (["--tasks", "x", "--ratio", "2"], "--ratio 2"),
    (["--tasks", "x", "--gen_kwargs", "temperature"], "temperature"),
    (["--tasks", "x", "--samples", "{0}"], "--samples"),
    (["--tasks", "x", "--fewshot_as_multiturn"], "apply_chat_template"),
    (["--config", "nowhere.yaml"], "nowhere.yaml"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(ulskip, arguments, named):
    code, _, err = ulskip("lm-eval", "model=tiny", *arguments)
    assert (code, len(err.splitlines())) == (2, 1)
    assert named in err


@pytest.mark.parametrize(("options", "named"), BAD_OPTIONS)
def test_the_harness_tells_what_is_wrong_with_its_options(ulskip, tmp_path, options, named):
    words = ["model=tiny", f"results_dir={tmp_path}", "--", *options]
    code, _, err = ulskip("lm-eval", *words)
    assert code in (1, 2) and named in err


def test_the_help_of_the_harness_stands_behind_the_dashes(ulskip, tmp_path):
    code, out, _ = ulskip("lm-eval", f"results_dir={tmp_path}", "--", "--help")
    assert (code, "--fewshot_as_multiturn" in out) == (0, True)
    assert "`ulskip lm-eval -- --help`" in ulskip("lm-eval", "--help")[1]


def test_a_missing_harness_is_named_with_what_brings_it(ulskip, monkeypatch):
    monkeypatch.setattr(command_module, "find_spec", lambda name: None)
    code, _, err = ulskip("lm-eval", "model=tiny", "--", "--tasks", "x")
    assert (code, "ulskip[lm-eval]" in err) == (2, True)


def test_a_model_of_the_users_own_presets_is_known(ulskip, tmp_path):
    (tmp_path / "model").mkdir()
    text = "name: mine\nsource: bundled\npath: tiny\ndescription: mine\n"
    (tmp_path / "model" / "mine.yaml").write_text(text)
    code, out, _ = ulskip("lm-eval", "model=mine", "--config-dir", tmp_path, "--print-config")
    assert code == 0 and "  name: mine\n" in out
