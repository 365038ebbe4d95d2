"""Export two pairs and write the tokens that vLLM must generate, with ulskip and transformers.

Run this in the environment of ulskip: `python integrations/vllm/tests/make_expected.py FOLDER`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, DynamicCache, PreTrainedTokenizerBase
from ulskip_cli.api import generate
from ulskip_cli.core.config import compose
from ulskip_cli.core.correction import PATCHES
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.experiments.point import resolve
from ulskip_cli.experiments.runner import Models
from ulskip_cli.export.export_run import ExportRequest, run_export
from ulskip_cli.inference.loading import load
from ulskip_cli.inference.patch_fit import DEFAULT_RIDGE, PatchFitter
from ulskip_cli.inference.shallow_view import shallow_view
from ulskip_cli.inference.skip_adapter import SkipAdapter
from ulskip_cli.tasks.encoding import EncodedExample

ASSETS = Path(__file__).parents[3] / "ulskip_cli" / "assets"
NUM_PROMPTS, NEW_TOKENS = 50, 48
MODELS = {"tiny": ["ratio=2"], "smollm2-135m": ["ratio=1.25"]}


def prompts_of(name: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if name == "tiny":
        point = resolve(compose(["task=wmt"]))
        workload = Models().encode(point, point.data)
        return [tokenizer.decode(ids) for ids in workload.prompts[:NUM_PROMPTS]]
    articles = [
        json.loads(line)["article"]
        for line in (ASSETS / "cnn_dm_sample.jsonl").read_text().splitlines()
    ]
    lines = (ASSETS / "wmt_sample" / "sample.en").read_text().splitlines()
    tasks = [
        f"Summarize: {' '.join(text.split()[: 20 + 9 * i])}" for i, text in enumerate(articles[:25])
    ]
    tasks += [f"Continue this text: {line}" for line in lines[: NUM_PROMPTS - len(tasks)]]
    chats = [[{"role": "user", "content": task}] for task in tasks]
    return [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for chat in chats
    ]


def gaps(model, view, prompt_ids: list[int], tokens: list[int], prompt_layers: str) -> list[float]:
    """Return the difference between the two highest logits at each generated token."""
    first, cache = (model if prompt_layers == "all" else view), DynamicCache()
    with torch.inference_mode():
        logits = [
            first(input_ids=torch.tensor([prompt_ids]), cache=cache, use_cache=True).logits[0, -1:]
        ]
        if prompt_layers == "all" and view is not model:
            cache.layers = [cache.layers[i] for i in view_layers]
        if tokens[:-1]:
            logits.append(
                view(input_ids=torch.tensor([tokens[:-1]]), cache=cache, use_cache=True).logits[0]
            )
    top = torch.cat(logits).topk(2).values
    return [round(float(gap), 5) for gap in top[:, 0] - top[:, 1]]


target = Path(sys.argv[1])
target.mkdir(parents=True, exist_ok=True)
for name, overrides in MODELS.items():
    folder = target / name
    weights = [f"model={name}", "model.dtype=float32"]
    config = compose(weights).model
    pair = compose([*weights, *overrides], command="export --format hf")
    kept = run_export(pair, ExportRequest(folder / "pair", check=False))["kept_layers"]
    model = load(config).model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "pair")
    prompts = prompts_of(name, tokenizer)
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    view_layers, view = kept, shallow_view(model, kept)
    runs = {"full": (model, None, "all"), "kept": (view, kept, "kept"), "pair": (view, kept, "all")}
    expected: dict = {
        "prompts": prompts,
        "prompt_ids": ids,
        "max_new_tokens": NEW_TOKENS,
        "kept_layers": kept,
    }
    if name == "tiny":  # a folded adapter, fitted on the prompts and the answers of the full model
        answers = generate(model, tokenizer, prompts[:20], max_new_tokens=NEW_TOKENS)
        examples = [EncodedExample(i, a.token_ids) for i, a in zip(ids[:20], answers, strict=True)]
        fitted = PatchFitter(model, examples, 0).fit([kept], PATCHES["folded"], DEFAULT_RIDGE)
        base = {"model": "tiny", "fingerprint": ModelFolder(config).fingerprint}
        record = {"base": base, "rank": None, "lora_rank": None}
        replace(fitted, record=record).save(folder / "adapter")
        adapted = ["correction=adapter", f"correction.path={folder / 'adapter'}"]
        folded = compose([*weights, *overrides, *adapted], command="export --format hf")
        run_export(folded, ExportRequest(folder / "folded", check=False))
        adapter = SkipAdapter.load(folder / "adapter")
        folded = adapter.view(model, tuple(kept))
        runs |= {"folded_kept": (folded, kept, "kept"), "folded_pair": (folded, kept, "all")}
    for run, (decoder, layers, prompt_layers) in runs.items():
        given = adapter if run.startswith("folded") else None
        options = {
            "prompt_layers": prompt_layers,
            "skip_adapter": given,
            "max_new_tokens": NEW_TOKENS,
        }
        tokens = [
            answer.token_ids for answer in generate(model, tokenizer, prompts, layers, **options)
        ]
        margins = [
            gaps(model, decoder, i, t, prompt_layers) for i, t in zip(ids, tokens, strict=True)
        ]
        expected[run] = {"tokens": tokens, "gaps": margins}
        print(
            name,
            run,
            sum(map(len, tokens)),
            "tokens",
            "smallest gap",
            min(map(min, margins)),
            flush=True,
        )
    for file in folder.rglob("generation_config.json"):  # which the servers leave out
        file.write_text(json.dumps(json.loads(file.read_text()) | {"repetition_penalty": 1.3}))
    (folder / "expected.json").write_text(json.dumps(expected))
