"""Copy the trained model into the package: weights, tokenizer and the record of its training.

python recipes/tiny/embed.py --model runs/tiny/model --split runs/tiny/data/split.json
"""

import argparse
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
LIMIT_BYTES = 25_000_000


def stages(record: dict) -> list[dict]:
    """List the record of a training and the records of the trainings before it."""
    return [record, *(stages(record["based_on"]) if record.get("based_on") else [])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--assets", type=Path, default=ROOT / "ulskip_cli" / "assets")
    args = parser.parse_args()
    record = json.loads((args.model / "training.json").read_text("utf-8"))
    for one in stages(record):  # paths of the training machine mean nothing elsewhere
        config = one["config"]
        for node in (config["task"], config["train"]["validation"]):
            node.update(
                {key: Path(value).name for key, value in node.items() if key.endswith("_file")}
            )
        config["output"], config["model"]["path"] = (
            Path(config["output"]).name,
            Path(config["model"]["path"]).name,
        )
    record["data"] = json.loads(args.split.read_text("utf-8"))
    others = sum(
        f.stat().st_size for f in args.assets.rglob("*") if f.is_file() and f.parent.name != "tiny"
    )
    total = others + sum((args.model / name).stat().st_size for name in FILES)
    if total > LIMIT_BYTES:
        raise SystemExit(
            f"expected at most {LIMIT_BYTES} bytes of assets, got {total}; save the model in"
            " bfloat16"
        )
    (args.assets / "tiny").mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(args.model / name, args.assets / "tiny" / name)
    (args.assets / "tiny" / "training.json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    print(f"{total / 1e6:.1f} MB of assets")


if __name__ == "__main__":
    main()
