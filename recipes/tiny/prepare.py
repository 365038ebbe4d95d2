"""Split the Tatoeba German-English pairs for training the embedded model.

    python recipes/tiny/prepare.py --data PATH/deu-eng.tsv.gz --to runs/tiny/data

The recipe writes train, validation and test as two text files each, one sentence a line, and
split.json. Pairs that share a sentence, directly or through others, stay in one part; pairs similar
to the bundled sample are left out.
"""

import argparse
import gzip
import hashlib
import json
import random
import re
from collections import defaultdict
from pathlib import Path

SAMPLE = Path(__file__).parents[2] / "ulskip_cli" / "assets" / "wmt_sample"
SEED = 1
TEST, VALIDATION = 1000, 300  # sentences
NEAR_DUPLICATE = 0.75

Pair = tuple[str, str]


def words(sentence: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", sentence.lower()))


def near_duplicates(pairs: list[Pair], protected: list[Pair]) -> set[int]:
    """Find the indices of pairs with a side that shares at least 75% of its words with a protected
    sentence.
    """
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
    """Assign component ids: pairs that share a German or an English line, directly or through
    others, get one id.
    """
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


def split(pairs: list[Pair], sizes: dict[str, int]) -> dict[str, list[Pair]]:
    """Assign random components to each named part until it has its size, and the rest to `train`.

    A part counts and keeps each German sentence once, with its first translation.
    """
    groups = defaultdict(list)
    for pair, component in zip(pairs, components(pairs), strict=True):
        groups[component].append(pair)
    order = sorted(groups)
    random.Random(SEED).shuffle(order)
    parts, taken = {}, 0
    for name, size in sizes.items():
        part: dict[str, str] = {}
        while len(part) < size:
            for german, english in groups[order[taken]]:
                part.setdefault(german, english)
            taken += 1
        parts[name] = list(part.items())
    held_out = set(order[:taken])
    parts["train"] = [
        pair for component, group in groups.items() if component not in held_out for pair in group
    ]
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="use this many pairs, drawn at random")
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)

    raw = gzip.decompress(args.data.read_bytes())
    pairs = [(line.split("\t")[0], line.split("\t")[1]) for line in raw.decode().splitlines()]
    if args.limit:
        pairs = random.Random(SEED).sample(pairs, args.limit)
    german, english = (
        (SAMPLE / f"sample.{s}").read_text("utf-8").splitlines() for s in ("de", "en")
    )
    dropped = near_duplicates(pairs, list(zip(german, english, strict=True)))
    share = min(1.0, len(pairs) / 20_000)
    sizes = {"test": round(TEST * share), "validation": round(VALIDATION * share)}
    parts = split([pair for i, pair in enumerate(pairs) if i not in dropped], sizes)
    for name, part in parts.items():
        for side, language in enumerate(("de", "en")):
            (args.to / f"{name}.{language}").write_text(
                "".join(pair[side] + "\n" for pair in part), "utf-8"
            )
    facts = {
        "data": "Tatoeba German-English pairs (manythings.org/anki, tatoeba.org), CC BY 2.0",
        "sha256": hashlib.sha256(raw).hexdigest(),
        "seed": SEED,
        "pairs": len(pairs),
        "near_the_sample": len(dropped),
        **{name: len(part) for name, part in parts.items()},
    }
    (args.to / "split.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
