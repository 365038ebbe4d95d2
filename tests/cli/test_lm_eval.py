import pytest

pytest.importorskip("lm_eval")

from ulskip_cli.cli import lm_eval as command_module

BAD = [
    ([], "--tasks"),
    (["ratoi=2", "--", "--tasks", "x"], "ratio"),
    (["limit=3", "--", "--tasks", "x"], "--limit"),
    (["--tasks", "x"], "behind `--`"),
    (["--", "--tasks", "x", "--ratio", "2"], "--ratio 2"),
    (["--", "--tasks", "x", "--gen_kwargs", "temperature"], "temperature"),
    (["--", "--tasks", "x", "--samples", "{0}"], "--samples"),
    (["--", "--tasks", "x", "--fewshot_as_multiturn"], "apply_chat_template"),
    (["--", "--config", "nowhere.yaml"], "nowhere.yaml"),
]
REPLACED = {"--model hf": "model=tiny", "--model_args pretrained=gpt2": "model.path="}
REPLACED |= {"--batch_size 4": "batch_size= ", "--device cuda:0": "model.device="}
REPLACED |= {"--predict_only": "--log_samples", "--wandb_args project=x": "results folder"}
BAD += [(["--", "--tasks", "x", *text.split()], named) for text, named in REPLACED.items()]


@pytest.mark.parametrize(("arguments", "named"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(ulskip, arguments, named):
    code, _, err = ulskip("lm-eval", "model=tiny", *arguments)
    assert (code, len(err.splitlines())) == (2, 1)
    assert named in err


def test_a_yaml_file_of_the_harness_cannot_choose_the_model_either(ulskip, tmp_path):
    (tmp_path / "harness.yaml").write_text("model: hf\ntasks: [x]\n")
    code, _, err = ulskip("lm-eval", "model=tiny", "--", "--config", tmp_path / "harness.yaml")
    assert (code, "--model is not supported" in err) == (2, True)


def test_the_help_of_the_harness_stands_behind_the_dashes(ulskip):
    code, out, _ = ulskip("lm-eval", "--", "--help")
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
