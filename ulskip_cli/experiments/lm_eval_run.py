"""Run tasks of lm-evaluation-harness on a model that skips layers, and store a row for each task (`ulskip lm-eval`)."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lm_eval._cli.utils import key_val_to_dict, request_caching_arg_to_dict, try_parse_json
from lm_eval.tasks import TaskManager

from ulskip_cli.core import environment
from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.preflight import Resolver
from ulskip_cli.experiments.record import ROW_VERSION, RunRecord
from ulskip_cli.experiments.results import ResultsFolder

EXPERIMENT = "lm_eval"  # the default of name=
# Options that change the answers and are recorded by no other key of a row.
_RECORDED = ("apply_chat_template", "fewshot_as_multiturn", "system_instruction", "gen_kwargs", "samples", "seed", "metadata")
_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
_FORMATS = {"seed": "one number, or four as python,numpy,torch,fewshot", "samples": 'JSON such as {"TASK": [0, 3]}'}
_REPLACED = {
    "limit": "--limit",
    "batch_size": "--batch_size",
    "task": "--tasks",
}  # configuration keys without effect here, and the options that replace them


def evaluate(overrides: Sequence[str], options: Mapping[str, Any]) -> tuple[ResultsFolder, dict[str, Any]]:
    """Evaluate a model on the harness's tasks, write the harness's JSON and save a row for every task.

    `options` holds the harness's options as typed, including `tasks`. The returned dict is the output of `simple_evaluate`
    without samples.
    """
    for key, option in _REPLACED.items():
        if any(text.startswith(f"{key}=") for text in overrides):
            raise UsageError(f"{key}= is not supported by `ulskip lm-eval`; use {option}")
    arguments = {"log_samples": False, **_read_options(options)}
    device = arguments.pop("device", None)
    overrides = [f"name={EXPERIMENT}", *([f"model.device={device}"] if device else []), *overrides]  # later overrides win
    config = compose(overrides)
    Resolver().schedule(config)
    manager = TaskManager(include_path=arguments.pop("include_path", None), metadata=arguments.get("metadata"))
    tasks = _find_tasks(manager, arguments.pop("tasks"))
    folder = ResultsFolder.of(config)
    output = arguments.pop("output_path", None) or folder.path / EXPERIMENT

    from datasets.exceptions import DatasetsError
    from lm_eval import simple_evaluate  # imports torch, so only after all checks
    from lm_eval.loggers import EvaluationTracker

    from ulskip_cli.experiments.lm_eval_adapter import SkippingLM

    model = SkippingLM(overrides, arguments.get("batch_size", 1), arguments.get("max_batch_size", 64))
    if arguments.get("apply_chat_template") and not model.tokenizer.chat_template:
        raise UsageError(
            f"--apply_chat_template is not supported with {config.model.path}, whose tokenizer has no chat template; "
            "remove the option"
        )
    if "use_cache" in arguments:  # answers of another model or schedule must not be reused
        arguments["use_cache"] += "_" + _digest([model.record().id, model.scoring_plan.prompt_layers])
    folder.check_writable()
    tracker = EvaluationTracker(output_path=str(output))
    given = {
        "pretrained": config.model.path,
        "overrides": [text for text in overrides if not text.lstrip("+").startswith("tracker")],
    }
    arguments |= {"task_manager": manager, "evaluation_tracker": tracker, "device": str(model.device)}
    try:
        with environment.offline_if_hub_unreachable():
            results: dict[str, Any] = simple_evaluate(model=model, model_args=given, tasks=tasks, **arguments)
    except (ConnectionError, DatasetsError, FileNotFoundError) as error:  # the hub or a file cannot be reached
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            f"cannot read the data of --tasks {','.join(tasks)} ({reason}); check the connection and the task, or use "
            "--include_path with tasks of local files"
        ) from None
    results["config"]["model"] = "ulskip"
    samples = results.pop("samples", {})
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, answers in samples.items():
        tracker.save_results_samples(task_name=task, samples=answers)
    for record in make_records(results, {key: options[key] for key in _RECORDED if key in options}):
        folder.save(config, record)
    return folder, results


def make_records(results: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> list[RunRecord]:
    """Make one record for each task, with metrics in the harness's units; groups of tasks have no record.

    `options` are further harness options that change the answers; a row stores them under `lm_eval_options`.
    """
    shared = RunRecord.from_row(results["config"]["ulskip"])
    assert shared.lm_eval is not None
    assert shared.provenance is not None
    records = []
    for task in results["configs"]:
        num_examples = results.get("n-samples", {}).get(task, {}).get("effective")
        scores = replace(
            shared.lm_eval,
            lm_eval={
                key.removesuffix(",none").replace(",", " "): value
                for key, value in results["results"][task].items()
                if isinstance(value, (int, float)) and key not in ("sample_len", "sample_count")
            },
            num_fewshot=results.get("n-shot", {}).get(task),
            task_version=results.get("versions", {}).get(task),
            lm_eval_options=dict(options) if options else None,
        )
        asked = [shared.identity.id, task, num_examples, asdict(replace(scores, lm_eval=None))]
        identity = replace(shared.identity, id=_digest([ROW_VERSION, asked]), task=f"lm_eval:{task}")
        provenance = replace(shared.provenance, num_examples=num_examples)
        records.append(replace(shared, identity=identity, lm_eval=scores, provenance=provenance))
    return records


def _read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    read = dict(options)
    if not re.fullmatch(r"auto(:\d+)?|[1-9]\d*", read.get("batch_size", "1")):
        raise UsageError(f"--batch_size: expected a positive number, auto or auto:N, got {read['batch_size']}; use e.g. 8")
    if read.get("limit", 1) <= 0:
        raise UsageError(f"--limit: expected a number of examples > 0, or a share of the task < 1, got {read['limit']:g}")
    for key in {"gen_kwargs", "metadata", "samples", "seed"} & read.keys():
        try:
            if key == "seed":
                read |= _read_seeds(read.pop("seed"))
            else:
                parsed = try_parse_json(read[key])
                read[key] = parsed if isinstance(parsed, dict) else key_val_to_dict(read[key])
        except ValueError:
            raise UsageError(
                f"--{key}: expected {_FORMATS.get(key, 'key=value,... or JSON')}, got {options[key]:.80}"
            ) from None
    read.update(request_caching_arg_to_dict(read.pop("cache_requests", None)))
    return read


def _read_seeds(text: str) -> dict[str, int | None]:
    """Parse one seed for all random generators, or one seed for each; None leaves a generator unseeded.

    >>> _read_seeds("0,None,8,52")["numpy_random_seed"] is None, _read_seeds("3")["fewshot_random_seed"]
    (True, 3)
    """
    seeds = [None if part.strip().lower() == "none" else int(part) for part in text.split(",")]
    if len(seeds) not in (1, 4):
        raise ValueError(f"expected one number or four, got {text}")
    return dict(zip(_SEEDS, seeds * (4 // len(seeds)), strict=True))


def _find_tasks(manager: TaskManager, given: Sequence[str]) -> list[str]:
    """Return the tasks and groups that patterns match; paths of YAML files are returned unchanged."""
    found: dict[str, None] = {}
    for name in (name for text in given for name in text.split(",")):
        names = [name] if Path(name).is_file() else manager.match_tasks([name])
        if not names:
            raise UsageError(
                f"--tasks: expected a task of lm-evaluation-harness, got '{name}'; list all tasks with `lm-eval ls tasks`"
            )
        found |= dict.fromkeys(names)
    return list(found)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
