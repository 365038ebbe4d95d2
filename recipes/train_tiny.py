"""Train the embedded model: German-English both ways, with layer skipping, on the Tatoeba pairs.

    python recipes/train_tiny.py --data PATH/deu-eng.tsv.gz --work runs/tiny

About an hour on one core (OMP_NUM_THREADS=1). Killed at any moment, the same command carries on from the last checkpoint.
Every batch draws how many of the 12 layers its responses run through, so one checkpoint serves every ratio.
"""

import argparse
import gzip
import hashlib
import json
import random
import re
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ulskip_cli import schedule, views
from ulskip_cli.generation.encoding import encode_pairs
from ulskip_cli.generation.teacher_forcing import response_logits
from ulskip_cli.tasks.examples import Example
from ulskip_cli.tasks.template import INSTRUCTION_AFTER_INPUT, Template

ASSETS = Path(__file__).parent.parent / "ulskip_cli" / "assets"
TEMPLATE = Template(*INSTRUCTION_AFTER_INPUT)
VOCAB_SIZE, HIDDEN_SIZE, NUM_LAYERS = 8000, 192, 12
STEPS, BATCH_SIZE, SEED = 4250, 64, 1
PEAK_LR, WARMUP, COSINE_STEPS, COOLDOWN_FROM = 2e-3, 300, 5500, 2000  # a cosine, brought to zero early
KEPT_COUNTS, WEIGHTS = (12, 8, 6, 4), (0.45, 0.10, 0.30, 0.15)  # 1x, 1.5x, 2x, 3x
HELD_OUT, NEAR_DUPLICATE = 500, 0.75
CHECKPOINT_EVERY, PROBE_EVERY, PROBE_PAIRS = 250, 500, 100

Pair = tuple[str, str]


def words(sentence: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", sentence.lower()))


def near_duplicates(pairs: list[Pair], protected: list[Pair]) -> set[int]:
    """Indices of pairs of which one side shares at least 75% of its words with a protected sentence."""
    found = set()
    for side in (0, 1):
        shielded = [words(pair[side]) for pair in protected]
        by_word = defaultdict(set)
        for i, bag in enumerate(shielded):
            for word in bag:
                by_word[word].add(i)
        for i, pair in enumerate(pairs):
            bag = words(pair[side])
            near = set().union(*(by_word[word] for word in bag)) if bag else set()
            if any(len(bag & shielded[j]) / len(bag | shielded[j]) >= NEAR_DUPLICATE for j in near):
                found.add(i)
    return found


def components(pairs: list[Pair]) -> list[int]:
    """A component id a pair: pairs that share a German or an English line, directly or through others."""
    parent = {}

    def root(node):
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for german, english in pairs:
        parent[root(("de", german))] = root(("en", english))
    ids = {}
    return [ids.setdefault(root(("de", german)), len(ids)) for german, _ in pairs]


def split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs with no sentence in common."""
    ids = components(pairs)
    sizes = defaultdict(int)
    for i in ids:
        sizes[i] += 1
    alone = [i for i, size in sizes.items() if size == 1]
    chosen = set(random.Random(SEED).sample(alone, HELD_OUT))
    train = [pair for pair, i in zip(pairs, ids, strict=True) if i not in chosen]
    return train, [pair for pair, i in zip(pairs, ids, strict=True) if i in chosen]


def both_ways(pairs: list[Pair]) -> list[tuple[str, str]]:
    """(prompt, response) texts for German to English and back."""
    rendered = []
    for german, english in pairs:
        for source, reference, names in ((german, english, ("German", "English")), (english, german, ("English", "German"))):
            example = Example(id="", source=source, reference=reference)
            rendered.append((TEMPLATE.prompt(example, *names), TEMPLATE.response(example)))
    return rendered


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=["<pad>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left", model_max_length=512
    )


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE, hidden_size=HIDDEN_SIZE, intermediate_size=512, num_hidden_layers=NUM_LAYERS,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
            pad_token_id=0, bos_token_id=None, eos_token_id=1,
        )
    )  # fmt: skip


def batches(rendered):
    """For every step its pairs of one epoch-shuffled stream, of similar length, the same in every run."""
    rng, lengths = random.Random(SEED), [len(p) + len(r) for p, r in rendered]
    queue: list[list[int]] = []
    for _ in range(STEPS):
        if not queue:
            order = sorted(range(len(rendered)), key=lambda i: lengths[i] + rng.uniform(-8, 8))
            queue = [order[i : i + BATCH_SIZE] for i in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE)]
            rng.shuffle(queue)
        yield [rendered[i] for i in queue.pop()], rng.choices(KEPT_COUNTS, WEIGHTS)[0]


def loss_of(model, model_views, tokenizer, texts, count, smoothing=0.0):
    """Mean cross-entropy of the responses, every token weighing the same."""
    batch = encode_pairs(tokenizer, texts)
    kept, view = model_views[count]
    logits = response_logits(model, view, kept, batch.prompt_ids, batch.prompt_mask, batch.response_ids)
    targets = batch.response_ids.masked_fill(batch.response_mask == 0, -100)
    return functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, label_smoothing=smoothing
    )


def learning_rate(step: int) -> float:
    if step < WARMUP:
        return PEAK_LR * (step + 1) / WARMUP
    progress = torch.tensor((step - WARMUP) / (COSINE_STEPS - WARMUP))
    cooled = min(1.0, (STEPS - step) / (STEPS - COOLDOWN_FROM))
    return float(PEAK_LR * cooled * (0.02 + 0.98 * 0.5 * (1 + torch.cos(torch.pi * progress))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    raw = gzip.decompress(args.data.read_bytes())
    pairs = [(line.split("\t")[0], line.split("\t")[1]) for line in raw.decode().splitlines()]
    german, english = ((ASSETS / "wmt_sample" / f"sample.{s}").read_text("utf-8").splitlines() for s in ("de", "en"))
    sample = list(zip(german, english, strict=True))
    dropped = near_duplicates(pairs, sample)
    train, held_out = split([pair for i, pair in enumerate(pairs) if i not in dropped])
    print(f"{len(pairs)} pairs, {len(dropped)} near the sample, {len(train)} to train, {len(held_out)} held out", flush=True)

    rendered = both_ways(train)
    if not (args.work / "tokenizer.json").exists():
        train_tokenizer([text for pair in rendered for text in pair]).save_pretrained(args.work)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.work)
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    start, curve, checkpoint = 0, [], args.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, curve = state["step"], state["curve"]
    model.train()
    kept_sets = {count: schedule.even(NUM_LAYERS, count) for count in KEPT_COUNTS}
    model_views = {n: (kept, model if n == NUM_LAYERS else views.shallow_view(model, kept)) for n, kept in kept_sets.items()}
    probe = both_ways(held_out[:PROBE_PAIRS])

    began = time.perf_counter()
    for step, (texts, count) in enumerate(batches(rendered)):
        if step < start:
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss_of(model, model_views, tokenizer, texts, count, smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % PROBE_EVERY == 0 or step + 1 == STEPS:
            with torch.no_grad():
                losses = {n: round(loss_of(model, model_views, tokenizer, probe, n).item(), 4) for n in KEPT_COUNTS}
            curve.append({"step": step + 1, "held_out_loss": {str(n): loss for n, loss in losses.items()}})
            print(step + 1, losses, f"{time.perf_counter() - began:.0f} s", flush=True)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == STEPS:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "curve": curve}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").rename(checkpoint)

    out = args.work / "model"
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    recipe = {
        "data": "Tatoeba German-English pairs (manythings.org/anki, tatoeba.org), CC BY 2.0",
        "data_sha256": hashlib.sha256(raw).hexdigest(),
        "pairs": len(pairs), "dropped_near_sample": len(dropped), "train_pairs": len(train), "held_out_pairs": len(held_out),
        "directions": ["de-en", "en-de"], "steps": STEPS, "batch_size": BATCH_SIZE, "seed": SEED,
        "peak_lr": PEAK_LR, "warmup": WARMUP, "cosine_steps": COSINE_STEPS, "cooldown_from": COOLDOWN_FROM,
        "strategy": "unified", "spacing": "even", "prompt_layers": "all",
        "kept_counts": list(KEPT_COUNTS), "kept_count_weights": list(WEIGHTS), "learning_curve": curve,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }  # fmt: skip
    (out / "training.json").write_text(json.dumps(recipe, indent=1) + "\n")


if __name__ == "__main__":
    main()
