"""Check that exports give the same tokens in an environment where ulskip is not installed.

    python recipes/export/check.py --work runs/export-check

The recipe makes a virtual environment with torch and transformers, exports each model at 2x with prompt_layers=kept and as
a pair, and answers the same prompts there and here, one at a time. Here it uses transformers' engine, which must agree in
every token, and the torch engine, whose own matrix product may resolve near-ties differently. If it is interrupted, the
same command resumes. The page goes to results/export/README.md.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from ulskip_cli.core import environment
from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.files import write_atomic
from ulskip_cli.export.request import ExportRequest, exportable_plan
from ulskip_cli.export.run import export
from ulskip_cli.inference.decoder import DecodeContext, Decoder

PLAIN = Path(__file__).parent / "plain.py"
PACKAGES = ("torch", "transformers")
HEADS = ("model", "dtype", "layers", "prompt through", "prompts", "tokens", "other answers", "of the torch engine")


def bare_python(folder: Path) -> Path:
    """Make an environment with the same torch and transformers but without ulskip; returns its interpreter."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    wanted = [f"{name}=={version(name).split('+')[0]}" for name in PACKAGES]
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
    return python


def here(config: Config, prompts: list[list[int]], model, engine: str) -> list[list[int]]:
    """Generate the tokens of every prompt here, one prompt at a time."""
    import torch

    decoder = Decoder(model, exportable_plan(config)).with_engine(engine)
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        rows += decoder.generate(ids, torch.ones_like(ids), DecodeContext(config.decoding, 0)).token_ids
    return rows


def compare(model: str, layers: str, python: Path, work: Path, count: int, new_tokens: int) -> list[str]:
    """Make one line of the table; `model` is a name, or name@dtype."""
    from ulskip_cli.experiments.preflight import resolve
    from ulskip_cli.experiments.workload import encode_workload
    from ulskip_cli.inference.loading import load

    name, _, dtype = model.partition("@")
    overrides = [f"model={name}", "task=wmt", "ratio=2", f"prompt_layers={layers}", f"decoding.max_new_tokens={new_tokens}"]
    overrides += [f"model.dtype={dtype}"] if dtype else []
    to = work / f"{model}-{layers}"
    export(overrides, None, ExportRequest(to))
    config = compose(overrides)
    loaded = load(config.model)
    prompts = encode_workload(resolve(replace(config, limit=count)), loaded.tokenizer).prompts
    prompts_file, tokens_file = work / f"{model}-{layers}.prompts.json", work / f"{model}-{layers}.tokens.json"
    prompts_file.write_text(json.dumps({"prompts": prompts, "max_new_tokens": new_tokens}))
    subprocess.run(
        [str(python), "-I", str(PLAIN), str(to), str(prompts_file), str(tokens_file)], check=True, stdout=subprocess.DEVNULL
    )
    there = json.loads(tokens_file.read_text())
    rows = {engine: here(config, prompts, loaded.model, engine) for engine in ("transformers", "torch")}
    differ = {engine: sum(a != b for a, b in zip(rows[engine], there, strict=True)) for engine in rows}
    plan = exportable_plan(config)
    cells = (
        *(
            name,
            str(loaded.model.dtype).removeprefix("torch."),
            f"{plan.num_kept}/{plan.num_layers}",
            layers,
            len(prompts),
            sum(map(len, there)),
        ),
        *(f"{differ[engine]}/{len(prompts)}" for engine in ("transformers", "torch")),
    )
    print(*cells, flush=True)
    return [str(cell) for cell in cells]


def page(rows: list[list[str]]) -> str:
    """Write the page: the table and an explanation of its columns."""
    facts = {**environment.code(), **environment.machine("cpu")}
    table = [f"| {' | '.join(HEADS)} |", "|" + " --- |" * len(HEADS), *(f"| {' | '.join(row)} |" for row in rows)]
    note = (
        "Each model was exported at 2x and loaded in an environment that has torch and transformers but no ulskip. Prompts of "
        "the bundled translation sample were decoded greedily, one at a time. Other answers: prompts whose tokens differ from "
        "those of ulskip with transformers' engine. Of the torch engine: the same count with ulskip's own engine and kernel."
    )
    where = (
        f"ulskip {facts['ulskip']} at {(facts['git_commit'] or 'no commit')[:10]}, torch {facts['packages']['torch']}, "
        f"transformers {facts['packages']['transformers']}; {facts['processor']}, {facts['threads']} threads."
    )
    return "\n\n".join(["# Exports without ulskip", "\n".join(table), note, where]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/export-check"))
    parser.add_argument(
        "--models", nargs="+", help="names, or name@dtype", default=["tiny", "smollm2-135m", "smollm2-135m@float32"]
    )
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--to", type=Path, default=Path("results/export/README.md"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    python = bare_python(args.work / "venv")
    done, kept = {}, args.work / "rows.json"
    if kept.is_file():
        done = json.loads(kept.read_text())
    keys = [f"{name} {layers} {args.prompts} {args.new_tokens}" for name in args.models for layers in ("kept", "all")]
    for key in keys:
        if key not in done:
            name, layers, _, _ = key.split()
            done[key] = compare(name, layers, python, args.work, args.prompts, args.new_tokens)
            write_atomic(kept, json.dumps(done))
    write_atomic(args.to, page([done[key] for key in keys]))
    print(args.to)


if __name__ == "__main__":
    main()
