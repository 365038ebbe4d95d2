"""Generate tokens with transformers alone; check.py runs this script in an environment without ulskip.

    python plain.py EXPORT PROMPTS.json TOKENS.json

PROMPTS.json: {"prompts": [[ids]], "max_new_tokens": n}. If EXPORT has a prefill model, prompts run through it.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


@torch.inference_mode()
def main() -> None:
    assert importlib.util.find_spec("ulskip_cli") is None, "expected an environment without ulskip, but ulskip is installed"
    folder, asked = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    decode = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pair = (folder / "prefill").is_dir()
    prefill = AutoModelForCausalLM.from_pretrained(folder / "prefill") if pair else None
    kept = json.loads((folder / "schedule.json").read_text())["kept_layers"]
    ends = decode.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends or []
    rows = []
    for prompt in asked["prompts"]:
        ids, left, options = torch.tensor([prompt]), asked["max_new_tokens"], {}
        if prefill is not None:
            cache = DynamicCache(config=prefill.config)
            first = prefill(input_ids=ids, cache=cache, use_cache=True).logits[:, -1:].argmax(-1)
            ids, left = torch.cat([ids, first], dim=1), left - 1
            cache.layers = [cache.layers[i] for i in kept]
            options["cache"] = cache
        if left and int(ids[0, -1]) not in (ends if prefill is not None else []):
            ids = decode.generate(ids, max_new_tokens=left, do_sample=False, pad_token_id=ends[0] if ends else 0, **options)
        rows.append(ids[0, len(prompt) :].tolist())
    print(tokenizer.decode(rows[0]))
    Path(sys.argv[3]).write_text(json.dumps(rows))


main()
