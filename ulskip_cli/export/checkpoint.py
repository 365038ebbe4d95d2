"""Export of the kept layers as a folder that transformers loads. Only the class, the dtype and
entries about layers differ from the source's config.json. A config cannot describe every view:
GPT-2 can scale the attention of a layer by its index. Therefore the model of the new config is
built on the meta device and compared with the view module by module, and the written folder is
loaded and compared by logits.
"""

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import psutil
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from ulskip_cli.core.correction import PATCHES
from ulskip_cli.core.errors import RunError, UsageError, reason
from ulskip_cli.core.files import JsonObject, user_path
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.export import export_run
from ulskip_cli.export.export_run import ResolvedExport
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.loading import (
    LoadedModel,
    first_difference,
    load,
    load_tokenizer,
    meta_model,
)
from ulskip_cli.inference.model_files import COMPANIONS, fetch_model_folder
from ulskip_cli.inference.skip_adapter import load_adapter
from ulskip_cli.report.tables import escape_markdown
from ulskip_cli.strategies.plan import Plan, is_trained_for

CARD, SERVING, PREFILL = "README.md", "SERVING.md", "prefill"
_TEMPLATES = Path(__file__).parent
CONFIG = "config.json"
MAX_FILE = "5GB"  # of weights
NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 3, 24, 16
DELETED = "the export was deleted; --no-check exports without this comparison"
_MAX_SHARE_OF_FREE_MEMORY = 0.7
_SAMPLE_BYTES = 1024


@dataclass(frozen=True)
class KeptLayers:
    """The model of an export, and the view that the export stores."""

    source: Path  # the folder of the model's files
    loaded: LoadedModel
    view: PreTrainedModel
    config: JsonObject  # the config.json of the view
    adapter_entry: JsonObject | None  # of a row: the skip adapter that changes the view


def load_kept(export: ResolvedExport, progress: ProgressCallback) -> KeptLayers:
    """Load the model and make its view; raise UsageError if no ordinary checkpoint can
    contain it.
    """
    model = export.folder.model
    kept = export.plan.kept_layers
    progress.phase(f"load {model.label}")
    source = fetch_model_folder(model, progress)
    if source.resolve().is_relative_to(export.to.resolve()):  # which the export replaces
        raise UsageError(
            f"expected --to outside the exported model, got {export.to} with the model in it; use"
            " another folder"
        )
    _read_config(source)  # refuses damaged checkpoints before the weights are loaded
    adapter, entry = load_adapter(export.config, export.plan)
    loaded = load(model)
    make_view = adapter.view if adapter else shallow_view.shallow_view
    view = make_view(loaded.model, kept)
    config = _exported_config(source, view, kept)
    return KeptLayers(source, loaded, view, config, entry)


def export_checkpoint(
    export: ResolvedExport, folder: Path, progress: ProgressCallback
) -> JsonObject:
    """Write the kept layers into `folder`, which takes the place of `export.to` later, and for a
    pair also the full model; return the record. Raise UsageError if the model cannot be exported,
    and RunError if the export differs from the view.
    """
    plan, model = export.plan, export.config.model
    exported = load_kept(export, progress)
    source, loaded = exported.source, exported.loaded
    progress.phase(f"write {len(plan.kept_layers)} layers")
    _write_model(source, exported.view, exported.config, folder)
    folders = {"decode": folder}  # of the models
    if export.is_pair:
        config = _exported_config(source, loaded.model, range(plan.num_layers))
        progress.phase(f"write {plan.num_layers} layers")
        folders["prefill"] = folder / PREFILL
        _write_model(source, loaded.model, config, folders["prefill"])
        page = serving_page(plan, exported.adapter_entry is not None)
        (folder / SERVING).write_text(page, "utf-8")
    (folder / export_run.SCHEDULE).write_text(export_run.schedule_text(export), "utf-8")
    checked = _verify(export, exported.view, folder, progress)
    parameters = list(exported.view.parameters())  # lists tied parameters once
    record = {
        "made_by": export.made_by,
        "model": {**model.plain(), "fingerprint": export.folder.fingerprint},
        "skip_adapter": export.adapter_folder,
        "strategy": plan.strategy,
        "num_layers": plan.num_layers,
        "kept_layers": list(plan.kept_layers),
        "prompt_layers": plan.prompt_layers,
        "prefill": PREFILL if export.is_pair else None,
        "weights_digest": {role: weights_digest(path) for role, path in folders.items()},
        "parameters": sum(parameter.numel() for parameter in parameters),
        "total_bytes": sum(parameter.nbytes for parameter in parameters),
        "checked": checked,
        "training": loaded.notes["training"],
        "trained_for_these": is_trained_for(loaded.notes["trained_for"], plan),
        "quantization": loaded.notes["quantization"],
        "license": source_license(source),
    }
    has_chat = bool(getattr(load_tokenizer(model), "chat_template", None))
    model_card(export, record, exported.adapter_entry, has_chat).save(folder / CARD)
    return {**export_run.write_record(folder, record), "next": export.next_command(has_chat)}


def _write_model(source: Path, model: PreTrainedModel, config: JsonObject, folder: Path) -> None:
    """Save a model with a config.json, and the tokenizer and license files of its source."""
    model.save_pretrained(folder, max_shard_size=MAX_FILE)
    for file in folder.glob("*.safetensors"):  # safetensors lets only the owner read its files
        file.chmod(folder.stat().st_mode & 0o666)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    for pattern in COMPANIONS:
        for file in filter(Path.is_file, source.glob(pattern)):
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def weights_digest(folder: Path) -> str:
    """Return a hash of names, types, shapes and first bytes of all tensors in a folder's
    safetensors. `ulskip_vllm/pair_export.py` computes the same, so that two servers can check that
    they have one pair.
    """
    tensors = []
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            # 8 bytes are the size of the header {name: entry}; offsets count from behind it.
            size = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(size))
            entries.pop("__metadata__", None)
            for name, entry in entries.items():
                start, end = entry["data_offsets"]
                stream.seek(8 + size + start)
                first = stream.read(min(end - start, _SAMPLE_BYTES)).hex()
                tensors.append((name, entry["dtype"], entry["shape"], first))
    return hashlib.sha256(json.dumps(sorted(tensors)).encode()).hexdigest()


def _verify(
    export: ResolvedExport, view: PreTrainedModel, folder: Path, progress: ProgressCallback
) -> str:
    """Compare an export with the view if request and memory allow it; describe this check and that
    of `_exported_config`.
    """
    structure = "the config describes the modules, tensor shapes and settings of the kept layers"
    needed = sum(parameter.nbytes for parameter in view.parameters())  # the export, beside the view
    why_not = reason_not_to_compare(export, needed)
    if why_not:
        return f"{structure}; logits were not compared{why_not}"
    progress.phase("compare with the model")
    return f"{structure}; {_compare(export, view, folder)}"


def reason_not_to_compare(export: ResolvedExport, needed: int) -> str:
    """Return why request or memory does not allow to compare so many bytes, as the end of a
    sentence, or an empty text.
    """
    if export.request.check is False:
        return " (--no-check)"
    room = _MAX_SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available
    if export.request.check is None and needed >= room:
        return ", because model and export do not fit into memory together"
    return ""


def _compare(export: ResolvedExport, view: PreTrainedModel, folder: Path) -> str:
    """Compare an export with the view; raise RunError if a logit or a token differs."""
    exported, loading = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True
    )
    if loading["missing_keys"]:
        raise RunError(
            f"expected {sorted(loading['missing_keys'])[0]} in the export, got no such tensor;"
            f" {DELETED}"
        )
    exported = exported.eval().to(view.device)
    expected_logits, logits = logits_of(view, exported)
    expected_tokens, tokens = _greedy_tokens(view), _greedy_tokens(exported)
    difference = float((expected_logits - logits).abs().max())
    if math.isnan(difference):
        raise RunError(f"expected finite logits, got NaN; check the model's weights; {DELETED}")
    if difference or not torch.equal(expected_tokens, tokens):
        raise RunError(
            "expected the export to give the logits of the kept layers, got a difference of"
            f" {difference:.3g}; {DELETED}"
        )
    parts = "layers and the skip adapter" if export.adapter_folder else "layers"
    return (
        f"logits at {len(logits)} positions of {NUM_PROMPTS} random prompts and {tokens.numel()}"
        f" greedy tokens are bit-identical to those of the source with these {parts}"
    )


@torch.inference_mode()
def logits_of(*models: PreTrainedModel) -> list[Tensor]:
    """Return the logits [positions, vocab_size] of models of one shape for the same prompts."""
    input_ids, attention_mask = random_prompts(models[0])
    shown = attention_mask.bool()
    return [
        model(input_ids=input_ids, attention_mask=attention_mask).logits[shown] for model in models
    ]


def random_prompts(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return random token ids and their mask, both [prompts, prompt_len], which depend on the
    vocabulary size alone. The last prompt is padded on the left.
    """
    vocab_size = shallow_view.text_config(model).vocab_size
    input_ids = torch.randint(
        vocab_size, (NUM_PROMPTS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1)
    )
    attention_mask = torch.ones_like(input_ids)
    attention_mask[-1, : PROMPT_TOKENS // 3] = 0
    return input_ids.to(model.device), attention_mask.to(model.device)


def _greedy_tokens(model: PreTrainedModel) -> Tensor:
    """Return greedy tokens [prompts, new_tokens]; generation continues after EOS."""
    input_ids, attention_mask = random_prompts(model)
    # top_k is the default: transformers warns of another one in the model's generation_config.
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None, top_k=50
    )
    output: Tensor = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=config
    )
    return output[:, input_ids.shape[1] :]


def _exported_config(folder: Path, view: PreTrainedModel, kept: Sequence[int]) -> JsonObject:
    """Return the config.json of a view of the checkpoint in `folder`; raise UsageError if a model
    that is built from it, without weights, is not like the view.
    """
    source = _read_config(folder)
    stored = json.loads((folder / CONFIG).read_text("utf-8"))
    values = _shortened(stored, source, view.config, kept)
    # The view can be a part of the source's model, such as the language model of a multimodal one.
    values["architectures"] = [type(view).__name__]
    dtype_key = "torch_dtype" if "torch_dtype" in values else "dtype"
    values[dtype_key] = str(view.dtype).removeprefix("torch.")
    rebuilt = meta_model(type(source).from_dict(copy.deepcopy(values)))
    difference = first_difference(view, rebuilt)
    if difference:
        num_layers = source.get_text_config(decoder=True).num_hidden_layers
        raise UsageError(
            f"{type(view).__name__} is not supported: no config describes {len(kept)} of its"
            f" {num_layers} layers ({difference}); use --format schedule"
        )
    return values


def _read_config(folder: Path) -> PreTrainedConfig:
    """Return a checkpoint's config; raise UsageError if it cannot be read."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each config class of transformers checks its values in its own way
        raise UsageError(
            f"transformers cannot read {folder / CONFIG} ({reason(error)}); use another model"
        ) from None
    return config


def _shortened(
    stored: JsonObject, source: PreTrainedConfig, view: PreTrainedConfig, kept: Sequence[int]
) -> JsonObject:
    """Return `stored`, the config.json of the source, with the number of kept layers, and their
    entries alone in lists of one per layer. Lists are added where the config class would derive
    others than the view has.
    """
    values = copy.deepcopy(stored)
    text_source, text_view = (config.get_text_config(decoder=True) for config in (source, view))
    text = _text_entries(values, source)
    # Some classes have another name for the count, such as n_layer; files can have either.
    count_key = text_view.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    stored_keys = {count_key, "num_hidden_layers"} & text.keys()
    for key in stored_keys or {count_key}:
        text[key] = len(kept)
    text |= shallow_view.per_layer(text, text_source.num_hidden_layers, kept)
    derived = type(source).from_dict(copy.deepcopy(values)).get_text_config(decoder=True)
    for key, value in vars(text_view).items():
        is_list = "layer" in key and isinstance(value, (list, tuple))
        if is_list and list(getattr(derived, key, None) or ()) != list(value):
            text[key] = list(value)
    return values


def _text_entries(values: JsonObject, source: PreTrainedConfig) -> JsonObject:
    """Return the entries of the language model in a config.json, which are under a key if the model
    is multimodal.
    """
    text_source = source.get_text_config(decoder=True)
    for key in source.sub_configs:
        if getattr(source, key, None) is text_source:
            entries: JsonObject = values.setdefault(key, {})
            return entries
    return values


def model_card(
    export: ResolvedExport, record: JsonObject, adapter_entry: JsonObject | None, has_chat: bool
) -> ModelCard:
    """Return the model card from card.md. `record` is that of `export_checkpoint`, `skip_adapter`
    that of `KeptLayers`; `has_chat` shows how to use the chat template.
    """
    model, adapter = export.config.model, adapter_entry or {}
    is_hub = model.source == "hf" and not user_path(model.path, "model.path").exists()
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=record["license"],
        base_model=[model.label] if is_hub else None,
        tags=["ulskip", "layer-skipping"],
    )
    kind, rank, parts = adapter.get("kind"), adapter.get("lora_rank"), []
    if kind in PATCHES:
        parts.append(f"{kind} patches")
    if rank:
        parts.append(f"LoRA of rank {rank}")
    chat_options = model.chat_options or {}
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATES / "card.md"),
        export=export,
        record=record,
        skip_adapter=adapter_entry,
        training=escape_markdown(record["training"] or "not recorded"),
        correction=" and ".join(parts) or "no patches",
        has_chat=has_chat,
        chat_options="".join(f", {key}={value!r}" for key, value in chat_options.items()),
    )
    return card


def serving_page(plan: Plan, has_adapter: bool) -> str:
    """Return the page about serving a prefill/decode pair, in Markdown."""
    text = (_TEMPLATES / "serving.md").read_text("utf-8")
    template = jinja2.Template(text, keep_trailing_newline=True)
    page: str = template.render(plan=plan, has_adapter=has_adapter)
    return page


def source_license(folder: Path) -> str | None:
    """Return the license in the source's model card, or None."""
    try:
        name = ModelCard.load(folder / CARD, ignore_metadata_errors=True).data.license
    except (ValueError, yaml.YAMLError):  # no file, not UTF-8, or no valid metadata
        return None
    return name if isinstance(name, str) else None
