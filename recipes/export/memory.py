"""Measure the peak memory of an export and compare it with the model's size.

    python recipes/export/memory.py --work runs/export-memory --layers 24 --hidden 2048 --shard-size 300MB

The recipe writes random weights of a Llama's shape in shards, exports half of the layers with --no-check (the check would
load models), and samples the process's memory. The page goes to results/export/memory.md.
"""

import argparse
import importlib
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from ulskip_cli.core.files import write_atomic
from ulskip_cli.core.model_metadata import ASSETS

HEADS = ("weights", "largest file read", "largest file written", "memory before", "peak", "peak, of its own", "seconds")
KEYS = ("VmRSS", "RssAnon")  # all resident memory, and the part without pages of files, which the system may reclaim


def make_model(folder: Path, layers: int, hidden: int, shard_size: str) -> None:
    import torch
    import transformers

    config = transformers.LlamaConfig(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=11 * hidden // 4, num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512), vocab_size=32000, max_position_embeddings=512,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        folder, max_shard_size=shard_size
    )
    for file in (ASSETS / "tiny").glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)


def resident() -> dict[str, float]:
    """Read the resident memory of this process, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(lines[key].split()[0]) / 1024 for key in KEYS}


def export_and_sample(arguments: list[str]) -> tuple[dict[str, float], dict[str, float], float]:
    """Export; returns the memory before, the peak memory and the seconds."""
    importlib.import_module("ulskip_cli.export.checkpoint")  # imports torch and transformers before the first sample
    from ulskip_cli.cli.app import invoke

    before = peak = resident()
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.005):
            now = resident()
            peak = {key: max(peak[key], now[key]) for key in KEYS}

    thread = threading.Thread(target=sample)
    thread.start()
    began = time.monotonic()
    code = invoke(arguments)
    seconds = time.monotonic() - began
    done.set()
    thread.join()
    assert code == 0
    return before, peak, seconds


def mib(files: list[Path]) -> list[float]:
    return [file.stat().st_size / 2**20 for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/export-memory"))
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--shard-size", default="300MB")
    parser.add_argument("--to", type=Path, default=Path("results/export/memory.md"))
    parser.add_argument("--make-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    source, target = args.work / "source", args.work / "exported"
    if args.make_only:
        return make_model(source, args.layers, args.hidden, args.shard_size)
    if not source.is_dir():  # in a separate process, whose memory does not count here
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--make-only"], check=True)
    options = ["--to", str(target), "--no-check", "--shard-size", args.shard_size]
    before, peak, seconds = export_and_sample(["export", f"model.path={source}", "ratio=2", "prompt_layers=kept", *options])
    sizes, written = (mib(sorted(folder.glob("*.safetensors"))) for folder in (source, target))
    cells = [sum(sizes), max(sizes), max(written), before["VmRSS"], peak["VmRSS"], peak["RssAnon"] - before["RssAnon"]]
    row = [*(f"{cell:,.0f} MiB" for cell in cells), f"{seconds:.0f}"]
    note = (
        f"A Llama of {args.layers} layers of width {args.hidden} in bfloat16, half of its layers exported with --shard-size "
        f"{args.shard_size} --no-check. Memory before: Python with torch and transformers. Peak: includes pages of the input "
        "files, which the system may reclaim. Peak, of its own: the growth of the memory without pages of files."
    )
    table = [f"| {' | '.join(HEADS)} |", "|" + " ---: |" * len(HEADS), f"| {' | '.join(row)} |"]
    write_atomic(args.to, "\n\n".join(["# Memory of an export", "\n".join(table), note]) + "\n")
    print(args.to.read_text())


if __name__ == "__main__":
    main()
