import pytest
import yaml

from ulskip_cli.core import config_reference as reference
from ulskip_cli.core.config import group_choices

COMMANDS = ("generate", "run", "sweep", "tune", "bench", "export", "lm-eval", "train")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_options_and_names_the_command_that_lists_keys(ulskip, command):
    code, out, _ = ulskip(command, "--help")
    assert code == 0
    out = " ".join(out.replace("│", " ").split())
    assert "--print-config" in out and "`ulskip config` lists all keys" in out
    assert "--since" not in out  # is for workers


@pytest.mark.parametrize("group", reference.ALL_GROUPS)
def test_config_describes_the_choices_of_a_group(ulskip, group):
    code, out, _ = ulskip("config", group)
    assert code == 0
    assert all(f"{group}={choice}" in out for choice in group_choices(group))


def test_config_lists_groups_and_other_keys(ulskip):
    out = ulskip("config")[1]
    assert all(f"{group}=" in out for group in reference.ALL_GROUPS)
    assert "speed.precision" in out and "output" in out


def test_config_shows_one_choice_or_one_key(ulskip):
    out = ulskip("config", "strategy=early_exit")[1]
    assert "strategy.threshold" in out and "strategy.spacing" not in out
    assert "speed.enabled" in ulskip("config", "speed")[1]
    assert "[min|na] [default: min]" in " ".join(ulskip("config", "strategy.batch")[1].split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_its_configuration(ulskip, command):
    prompt = ["a"] * (command == "generate")
    code, out, _ = ulskip(command, *prompt, "--print-config", "prompt_layers=kept")
    assert (code, yaml.safe_load(out)["prompt_layers"]) == (0, "kept")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["speed.enabled=false", "speed.seconds=60"], "speed.seconds has no effect, because speed"),
        (["decoding.draft=ngram"], "decoding.draft has no effect, because decoding.draft_tokens=0"),
        (["strategy=full", "ratio=3"], "ratio has no effect"),
        (["strategy=full,unified", "ratio=3", "correction=patch", "seed=2"], ""),
    ],
)
def test_a_key_without_an_effect_on_any_point_is_named(ulskip, words, told):
    code, _, err = ulskip("sweep", "--dry-run", "task=wmt", *words)
    assert code == 0 and err.count("has no effect") == bool(told) and told in err
