import re

import pytest

from ulskip_cli.cli.app import invoke


def complete(monkeypatch, capsys, *words):
    """Complete the last word as bash asks for it, with equals signs as words of their own."""
    split = [part for word in words for part in re.split("(=)", word) if part or not word]
    monkeypatch.setenv("_ULSKIP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(["ulskip", *split]))
    monkeypatch.setenv("COMP_CWORD", str(len(split)))
    with pytest.raises(SystemExit) as ended:
        invoke([])
    assert ended.value.code == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("words", "expected", "unexpected"),
    [
        (["swe"], {"sweep"}, {"run"}),
        (["run", ""], {"model=", "ratio=", "strategy="}, {"strategy.spacing=", "launcher="}),
        (["sweep", "laun"], {"launcher="}, {"model="}),
        (["run", "strategy="], {"unified", "top_skip"}, {"strategy="}),
        (["run", "strategy=un"], {"unified"}, {"top_skip"}),
        (["sweep", "strategy=full,un"], {"full,unified"}, {"unified"}),
        (["run", "decoding."], {"decoding.compile=", "decoding.num_beams="}, {"ratio="}),
        (["run", "strategy=early_exit", "strategy."], {"strategy.batch="}, {"strategy.spacing="}),
        (["run", "prompt_layers="], {"all", "kept"}, set()),
        (["run", "rati"], {"ratio=", "ratio_basis="}, set()),
        (["config", "strategy=ea"], {"early_exit"}, {"unified"}),
        (["run", "nothing"], set(), {"model="}),
    ],
)
def test_bash_completes_commands_groups_choices_and_keys(
    monkeypatch, capsys, words, expected, unexpected
):
    found = set(complete(monkeypatch, capsys, *words))
    assert expected <= found
    assert not unexpected & found
