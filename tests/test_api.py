import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from reference import build_model, random_adapter

import ulskip_cli
from ulskip_cli import api
from ulskip_cli.core.correction import NO_PATCHES
from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference.skip_adapter import SkipAdapter


@pytest.fixture(scope="module")
def loaded(model_folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(model_folder)


def test_the_package_has_the_api_and_stays_fast():
    script = (
        "import sys, ulskip_cli; assert not {'torch', 'transformers', 'omegaconf'} &"
        " set(sys.modules);from ulskip_cli import kept_layers; assert kept_layers(30, 2.0)[-1] =="
        " 29;assert 'torch' not in sys.modules; from ulskip_cli import evaluate, generate,"
        " shallow_view"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert set(api.__all__) <= set(ulskip_cli.__all__)
    assert all(hasattr(ulskip_cli, name) for name in ulskip_cli.__all__)


def test_a_schedule_is_the_strategys():
    assert api.kept_layers(12, 3.0) == (0, 4, 7, 11)
    assert api.kept_layers(12, 3.0, "top_skip") == (0, 1, 2, 3)
    assert api.kept_layers(12, 3.0, "bottom_skip") == (8, 9, 10, 11)
    assert api.kept_layers(12, 1.0, "custom", layers=[0, 5, 11]) == (0, 5, 11)
    assert api.kept_layers(6, 9.0, "custom", skip=[1, 4]) == (0, 2, 3, 5)
    with pytest.raises(UsageError, match=r"'unifed'.*'unified'"):
        api.kept_layers(12, 3.0, "unifed")
    for num_layers in (12.5, "12", 10**9):
        with pytest.raises(UsageError, match="num_layers"):
            api.kept_layers(num_layers, 2)
    for ratio in ("2", True):
        with pytest.raises(UsageError, match="ratio"):
            api.kept_layers(12, ratio)


def test_kept_prompt_layers_are_the_views_own_generation(loaded):
    model, tokenizer = loaded
    ids = tokenizer("the cat sat", return_tensors="pt")
    view = api.shallow_view(model, (0, 3, 5))
    assert view.config.num_hidden_layers == 3
    with torch.inference_mode():
        whole = view.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids.input_ids.shape[1] :]
    options = {"prompt_layers": "kept", "max_new_tokens": 6}
    (answer,) = api.generate(model, tokenizer, ["the cat sat"], (0, 3, 5), **options)
    assert answer.token_ids == whole.tolist()
    (full,) = api.generate(model, tokenizer, ["the cat sat"], max_new_tokens=6, num_beams=2)
    assert len(full.token_ids) <= 6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prompts": "text"}, "list of strings"),
        ({"prompts": [""]}, r"prompts\[0\]"),
        ({"prompts": ["a", 5]}, "list of strings"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"kept": [0, 1.5]}, "kept"),
        ({"kept": 6}, "list of layers, got '6'"),
        ({"kept": [0, 5], "ratio": 2}, "kept= or ratio="),
        ({"prompts": 6}, "list of strings"),
        ({"prompts": None}, "list of strings"),
        ({"seed": "x"}, "seed"),
        ({"num_beam": 3}, "'num_beam'.*'num_beams'"),
        ({"max_new_tokens": 0}, "max_new_tokens >= 1"),
        ({"prompt_layers": "some"}, "prompt_layers"),
        ({"skip_adapter": SkipAdapter(6, NO_PATCHES, {(0, 5): {}, (0, 3, 5): {}})}, r"\(0, 3, 5\)"),
        ({"skip_adapter": SkipAdapter(8, NO_PATCHES, {(0, 3, 5): {}})}, "of 6.* 8"),
        ({"skip_adapter": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_is_refused(loaded, options, match):
    with pytest.raises(UsageError, match=match):
        api.generate(*loaded, **{"prompts": ["a"], **options})


def test_an_evaluation_is_a_run(model_folder, tmp_path, quick):
    records = api.evaluate(f"model.path={model_folder}", f"results_dir={tmp_path}", *quick)
    assert [record.strategy for record in records] == ["full", "unified"]
    assert (tmp_path / "default" / "table.md").is_file()
    with pytest.raises(UsageError, match="ratio=9"):
        api.evaluate(f"model.path={model_folder}", "ratio=9", f"results_dir={tmp_path}/other")
    assert not (tmp_path / "other").exists()


def test_a_folder_is_a_model(loaded, model_folder):
    prompts, kept = ["the cat sat"], api.kept_layers(6, 2)
    options = {"max_new_tokens": 6, "batch_size": 1}
    (answer,) = api.generate(str(model_folder), prompts=prompts, ratio=2, **options)
    assert [answer] == api.generate(*loaded, prompts, kept, **options)
    assert [answer] == api.generate(model_folder, loaded[1], prompts, kept, **options)
    assert answer.prefill_seconds > 0 and answer.decode_seconds > 0
    rate = (len(answer.token_ids) - 1) / answer.decode_seconds
    assert answer.tokens_per_second == pytest.approx(rate)


def test_a_model_by_name_gets_its_chat_template(loaded, copied_model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(copied_model)
    tokenizer.chat_template = "{% for m in messages %}the {{ m['content'] }}{% endfor %} sat"
    tokenizer.save_pretrained(copied_model)
    answers = api.generate(copied_model, prompts=["cat"], max_new_tokens=4)
    assert answers == api.generate(*loaded, ["the cat sat"], max_new_tokens=4)
    assert answers != api.generate(copied_model, tokenizer, ["cat"], max_new_tokens=4)
    comparison = api.compare("cat", f"model.path={copied_model}", "max_new_tokens=4")
    assert comparison.full == answers[0] and comparison.prompt == "cat"


def test_the_first_difference_is_a_token_and_a_character():
    def difference(*texts):
        full, kept = (api.Answer(text, list(map(ord, text)), False) for text in texts)
        layers = "3 of 6 layers", (0, 3, 5)
        return api.AnswerPair("", "tiny", "unified", *layers, full, kept)

    assert difference("abc", "abd").first_difference == (2, 2)
    assert difference("abc", "ab").first_difference == (2, 2)
    assert "from token 3 on" in difference("abc", "ab").summary()
    assert difference("abc", "abc").summary().endswith("the answers are equal")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: api.evaluate({"ratio": 2}), "expected overrides as strings"),
        (lambda: api.compare(["a"]), "expected a text as prompt"),
        (lambda: api.generate("tiny", ["a"], ratio=2), r"prompts=\[...\]"),
        (lambda: api.generate("tiny"), "list of strings"),
        (lambda: api.generate("./nowhere", prompts=["a"]), "nowhere"),
        (lambda: api.generate("random", prompts=["a"]), "tokenizer from 'smollm2-135m'"),
        (lambda: api.generate(build_model("llama"), prompts=["a"]), "tokenizer=TOKENIZER"),
        (lambda: api.shallow_view(None, 6), "list of layers"),
        # numbers do not decide these layers
        (lambda: api.kept_layers(12, 2.0, "search"), "strategy=search"),
        (lambda: api.kept_layers(12, 2.0, "skip_decode"), "strategy=skip_decode"),
        (lambda: api.kept_layers(12, 2.0, "early_exit"), "strategy=early_exit"),
    ],
)
def test_misuse_is_one_line(call, match):
    with pytest.raises(UsageError, match=match):
        call()


def test_a_skip_adapter_corrects_the_decode_steps(loaded, tmp_path):
    model, tokenizer = loaded
    adapter, _ = random_adapter(model, (0, 3, 5), "full")
    adapter.save(tmp_path / "adapter")

    def answer(kept=None, **options):
        prompts = ["the cat sat"]
        (answer,) = api.generate(model, tokenizer, prompts, kept, max_new_tokens=6, **options)
        return answer

    corrected, plain, full = answer((0, 3, 5), skip_adapter=adapter), answer((0, 3, 5)), answer()
    for given in (adapter, tmp_path / "adapter", str(tmp_path / "adapter")):
        assert answer(skip_adapter=given) == corrected
    assert corrected.token_ids[0] == plain.token_ids[0] == full.token_ids[0]
    assert corrected.token_ids != plain.token_ids
    assert answer(range(6), skip_adapter=adapter) == full


def test_a_skip_adapter_of_other_weights_is_refused(loaded, model_folder, tmp_path):
    adapter, _ = random_adapter(loaded[0], (0, 3, 5), "full")
    base = {"model": "other", "fingerprint": "0"}
    replace(adapter, record={**adapter.record, "base": base}).save(tmp_path)
    with pytest.raises(UsageError, match="other weights"):
        api.generate(model_folder, prompts=["the cat"], skip_adapter=tmp_path)
