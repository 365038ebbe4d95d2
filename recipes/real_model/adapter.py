"""Train a skip adapter for code, on functions of Python's standard library and the problems of
HumanEval that reproduce.py does not evaluate.

    python recipes/real_model/adapter.py --model FILE.gguf --data PATH [--layers 20]

The prompt is the head of a function with its docstring, as in HumanEval, and the response is the
full model's own answer. The layers around each gap learn to reproduce the full model's states
behind it. That takes less than an hour on one core with bfloat16 instructions. If it is
interrupted, the same command resumes. Afterwards reproduce.py measures the adapter.
"""

import argparse
import ast
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from reproduce import LAYERS, WORK, keep, prepare

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.files import write_atomic

LENGTHS = range(200, 1600)  # characters of a function
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}


def functions(source: str) -> Iterator[dict[str, str]]:
    """Yield the functions of a module that have a docstring, as problems of HumanEval: the prompt
    ends behind the docstring. Tests are never run, so they are empty.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef) or not ast.get_docstring(node):
            continue
        docstring, *body = node.body
        text = lines[node.lineno - 1 : node.end_lineno]
        if not body or len("".join(text)) not in LENGTHS or node.decorator_list:
            continue
        head_lines = (docstring.end_lineno or 0) - node.lineno + 1
        yield {
            "prompt": "".join(text[:head_lines]),
            "canonical_solution": "".join(text[head_lines:]),
            "test": "def check(function): pass",
            "entry_point": node.name,
        }


def library() -> Iterator[dict[str, str]]:
    """Yield the functions of the standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(folder.rglob("*.py")):
        if not LEFT_OUT & {*file.relative_to(folder).parts}:
            yield from functions(file.read_text(encoding="utf-8", errors="replace"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder, GGUF file or hub id")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of humaneval/, wmt22/ and cnn_dm/"
    )
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--functions", type=int, default=384)
    parser.add_argument("overrides", nargs="*", help="further overrides of `ulskip train`")
    args = parser.parse_args()
    found = list(library())
    chosen = random.Random(0).sample(found, min(args.functions, len(found)))
    prepare(args.data)
    lines = "".join(json.dumps(function) + "\n" for function in chosen)
    held_out = (WORK / "held_out.jsonl").read_text(encoding="utf-8")
    write_atomic(WORK / "functions.jsonl", lines + held_out)
    print(f"{len(chosen)} of {len(found)} functions", file=sys.stderr, flush=True)
    _, layers = keep(args.layers)  # without strategy=custom: `search` runs layers that it is given
    train = [
        "train",
        "train=adapter",
        f"model.path={args.model}",
        "task=humaneval",
        f"task.file={WORK}/functions.jsonl",
        "strategy=search",
        layers,
        f"train.ratios={LAYERS / args.layers:.4f}",
        "train.responses=own",
        f"train.own.file={WORK}/own_responses.jsonl",
        "max_new_tokens=256",
        "train.gap_weight=1",
        "train.distill_weight=0",
        "train.epochs=8",
        "train.save_every=20",
        "train.log_every=10",
        f"output={WORK}/adapter-{args.layers}",
        *args.overrides,
    ]
    print("ulskip", *train, flush=True)
    sys.exit(invoke(train))


if __name__ == "__main__":
    main()
