"""`dlm-sglang serve`: resolve the settings, then become `python -m sglang.launch_server`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_sglang.cli.devices import num_cuda_devices
from dlm_sglang.cli.preflight import check_port, check_weight_files
from dlm_sglang.errors import SettingsError, shown
from dlm_sglang.seams.names import ALGORITHM
from dlm_sglang.setting_table import BUNDLED, BUNDLED_PATH, SETTING_BY_NAME, SETTINGS, Value
from dlm_sglang.settings import DecodeSettings, Resolved, allowed, as_text, resolve

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

BUNDLED_NAME = "nld-bundled"
# The rest that a CPU needs is set by our SGLang platform (seams/platform_cpu_impl.py).
CPU_FLAGS = ("--device", "cpu")
VERSIONS_SHOWN = ("dlm-sglang", "sglang", "torch", "transformers")
SECRET_SHOWN = "(set)"


def add_parser(commands: Commands) -> None:
    """Add the command's flags, from the table of settings."""
    parser = commands.add_parser(
        "serve",
        help="serve a checkpoint over HTTP",
        description="Serve a checkpoint over HTTP: the server of `python -m sglang.launch_server` with our settings. "
        "A flag goes before its variable, that before the YAML file, that before the default.",
        epilog="Arguments after a lone -- are given to SGLang as they are.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings, by the names below")
    parser.add_argument("--dry-run", action="store_true", help="print what would be started and stop")
    parser.add_argument("--json", action="store_true", help="with --dry-run: print it as JSON")
    for setting in SETTINGS:
        default = as_text(setting.default)
        parser.add_argument(
            setting.flag,
            dest=f"setting_{setting.name}",
            metavar="VALUE",
            help=f"{setting.meaning} ({allowed(setting)}; default {default}; {setting.variable})".replace("%", "%%"),
        )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    """Start the server; does not return when it could be started.

    Raises:
        SettingsError: a setting is wrong, or the port is taken.
        CheckpointError: a file of the checkpoint is missing or cut short.
    """
    flags = {name: value for name in SETTING_BY_NAME if (value := getattr(arguments, f"setting_{name}")) is not None}
    yaml_values = read_yaml(Path(arguments.config)) if arguments.config else {}
    resolved = resolve(flags, os.environ, yaml_values, str(arguments.config))
    # Refuses defaults that contradict each other before anything heavy starts.
    DecodeSettings.from_resolved(resolved).limits()
    argv = launch_argv(resolved, extra, on_cpu=num_cuda_devices() == 0)
    variables = decode_variables(resolved)
    if arguments.dry_run:
        shown_argv = _without_secrets(argv)
        plan = {"argv": shown_argv, "env": variables}
        print(json.dumps(plan, indent=2) if arguments.json else _as_shell(variables, shown_argv))
        return 0
    _require_sglang()
    check_port(str(resolved["host"].value), int(str(resolved["port"].value)))
    check_weight_files(Path(argv[argv.index("--model-path") + 1]))
    # A full disk behind the log is no reason not to serve.
    with contextlib.suppress(OSError):
        print(startup_block(resolved, argv), file=sys.stderr, flush=True)
    os.environ.update(variables)
    become(argv)
    return 0


def become(argv: Sequence[str]) -> None:
    """Replace this process by the server, so that signals and the exit status are the server's own."""
    os.execv(argv[0], list(argv))


def read_yaml(path: Path) -> Mapping[str, object]:
    """The mapping in a YAML file.

    Raises:
        SettingsError: the file cannot be read or does not hold a mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read {path}: {error}", source=str(path), code="config-unreadable") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(
            f"{path} must hold a mapping of settings, got {shown(values)}",
            source=str(path),
            code="config-unreadable",
            hint="write one `name: value` a line",
        )
    return values


def launch_argv(resolved: Mapping[str, Resolved], extra: Sequence[str], *, on_cpu: bool) -> list[str]:
    """The command line of the same server as SGLang's own launcher takes it."""
    values = {name: item.value for name, item in resolved.items()}
    if values["model_path"] == BUNDLED:
        values["model_path"] = str(BUNDLED_PATH)
        values["served_model_name"] = values["served_model_name"] or BUNDLED_NAME
        if on_cpu and values["dtype"] == "auto":
            values["dtype"] = "float32"
    # SGLang takes what stands behind a colon for an adapter and does not start; our front end knows the whole name.
    values["served_model_name"] = _without_colon(values["served_model_name"])
    argv = [sys.executable, "-m", "sglang.launch_server", "--speculative-algorithm", ALGORITHM]
    for setting in SETTINGS:
        value = values[setting.name]
        if not setting.sglang_flag or value is None or value is False:
            continue
        argv += [setting.sglang_flag] if value is True else [setting.sglang_flag, str(value)]
    return [*argv, *(CPU_FLAGS if on_cpu else ()), *extra]


def decode_variables(resolved: Mapping[str, Resolved]) -> dict[str, str]:
    """The variables that carry to every process what SGLang has no flag for."""
    names = [setting.name for setting in SETTINGS if not setting.sglang_flag] + ["max_block_length"]
    if ":" in str(resolved["served_model_name"].value):
        names.append("served_model_name")
    return {SETTING_BY_NAME[name].variable: as_text(resolved[name].value) for name in names}


def startup_block(resolved: Mapping[str, Resolved], argv: Sequence[str]) -> str:
    """What the server runs with, for a person to read."""
    lines = ["dlm-sglang serve"]
    lines += [f"  {name:30} {_version(name)}" for name in VERSIONS_SHOWN]
    for setting in SETTINGS:
        item = resolved[setting.name]
        value = SECRET_SHOWN if setting.secret and item.value is not None else item.value
        lines.append(f"  {setting.name:30} {as_text(value)}  ({item.source})")
    lines.append(f"  command: {shlex.join(_without_secrets(argv))}")
    return "\n".join(lines)


def _without_colon(name: Value) -> Value:
    return name.replace(":", "-") if isinstance(name, str) else name


def _without_secrets(argv: Sequence[str]) -> list[str]:
    secret_flags = {setting.sglang_flag for setting in SETTINGS if setting.secret}
    return [SECRET_SHOWN if before in secret_flags else word for before, word in zip(["", *argv], argv, strict=False)]


def _as_shell(variables: Mapping[str, str], argv: Sequence[str]) -> str:
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), shlex.join(argv)])


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _require_sglang() -> None:
    if _version("sglang") == "not installed":
        raise SettingsError(
            "sglang is not installed beside dlm-sglang",
            code="sglang-missing",
            hint="see the README: `make serve` sets everything up",
        )
