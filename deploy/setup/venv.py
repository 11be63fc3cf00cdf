"""Make the virtual environment that `make` runs everything from; does nothing when it is current.

Needs Python 3.11+ with pip, and nothing else. On a machine without an NVIDIA GPU only the CPU path is installed:
SGLang without its CUDA requirements, on the lock in `deploy/requirements/cpu.txt`. With one, SGLang's full stack.

    python deploy/setup/venv.py [--venv DIR] [--device auto|cpu|cuda] [--dev] [--no-editable]
                                 [--requirements-only]

Variables: `DEVICE` (as `--device`), `TORCH_INDEX_URL` (a package index with CPU builds of torch, searched beside
what pip is configured with).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "deploy" / "requirements"
STAMP_NAME = "dlm-setup.json"
LOG_NAME = "dlm-setup.log"
# Files whose change makes an environment stale.
KEYED_FILES = ("pyproject.toml", "dlm_sglang/torchvision_cpu.py", "deploy/setup/venv.py")
STILL_WORKING_S = 20
CHECK_PROGRAM = (
    "import torch, torchvision, sglang; from sglang.version import __version__ as v; "
    "print(f'sglang {v}, torch {torch.__version__}')"
)


class SetupError(Exception):
    """A stage failed; the message says what to do."""


@dataclass(frozen=True)
class Plan:
    """What to install, and where.

    Attributes:
        device: `cpu` or `cuda`.
        dev: the test and lint tools too.
        editable: run dlm_sglang from the checkout instead of from a copy.
        torch_index_url: an extra package index for torch, or empty.
    """

    venv: Path
    device: str
    dev: bool
    editable: bool
    torch_index_url: str = ""

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def requirement_files(self) -> tuple[Path, ...]:
        names = ["gpu.txt"] if self.device == "cuda" else ["cpu.txt", "sglang.txt"]
        names.append("measure.txt")
        return tuple(REQUIREMENTS / name for name in (*names, *(["dev.txt"] if self.dev else [])))

    def key(self) -> str:
        """A digest of everything that decides what the environment holds."""
        digest = hashlib.sha256(f"{ROOT} {self.device} {self.editable}".encode())
        for path in (*(ROOT / name for name in KEYED_FILES), *self.requirement_files):
            digest.update(path.read_bytes())
        return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Bring the environment up to date and return an exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default=os.environ.get("DEVICE") or "auto")
    parser.add_argument("--dev", action="store_true", help="install the test and lint tools too")
    parser.add_argument("--no-editable", dest="editable", action="store_false", help="copy dlm_sglang into the venv")
    parser.add_argument(
        "--requirements-only", action="store_true", help="leave dlm_sglang out, for a layer of an image"
    )
    arguments = parser.parse_args(argv)
    device = detect_device() if arguments.device == "auto" else arguments.device
    plan = Plan(
        arguments.venv.absolute(), device, arguments.dev, arguments.editable, os.environ.get("TORCH_INDEX_URL", "")
    )
    try:
        with only_one_at_a_time(plan.venv):
            set_up(plan, requirements_only=arguments.requirements_only)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def detect_device() -> str:
    """`cuda` where NVIDIA's driver lists a GPU, else `cpu`."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "cpu"
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "cuda" if listed.returncode == 0 and "GPU 0" in listed.stdout else "cpu"


@contextlib.contextmanager
def only_one_at_a_time(venv: Path) -> Iterator[None]:
    """Let `make serve` and `make test`, started together, take turns."""
    venv.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{venv}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def set_up(plan: Plan, *, requirements_only: bool = False) -> None:
    """Run the stages that are needed.

    Raises:
        SetupError: a stage failed.
    """
    stamp_path = plan.venv / STAMP_NAME
    if not requirements_only and is_current(plan, stamp_path):
        return
    dev_word = " with the test and lint tools" if plan.dev else ""
    print(f"Setting up {plan.venv} for {plan.device}{dev_word}: once, a few minutes.", flush=True)
    stamp_path.unlink(missing_ok=True)
    todo = stages(plan)
    if requirements_only:
        todo = [stage for stage in todo if stage[1] not in (install_ourselves, check_imports)]
    begun = time.monotonic()
    for number, (title, stage) in enumerate(todo, start=1):
        print(f"[{number}/{len(todo)}] {title}", flush=True)
        stage_begun = time.monotonic()
        stage(plan)
        print(f"      done in {time.monotonic() - stage_begun:.0f} s", flush=True)
    if not requirements_only:
        stamp_path.write_text(json.dumps({"key": plan.key()}), encoding="utf-8")
    print(f"Set-up finished in {time.monotonic() - begun:.0f} s.", flush=True)


def stages(plan: Plan) -> list[tuple[str, Callable[[Plan], None]]]:
    """What the set-up does, in order: a line to print, and the function."""
    if plan.device == "cpu":
        packages = [
            ("torch, CPU build", install_cpu_torch),
            ("SGLang and the pinned packages", install_pinned),
        ]
    else:
        packages = [("SGLang's full CUDA stack (several GB)", install_cuda_stack)]
    return [
        (f"virtual environment, Python {sys.version.split()[0]}", make_venv),
        *packages,
        ("dlm-sglang itself", install_ourselves),
        ("check: import torch, torchvision and sglang", check_imports),
    ]


def is_current(plan: Plan, stamp_path: Path) -> bool:
    """Whether the environment holds what the plan asks for; one with the dev tools serves a plan without, too."""
    try:
        stamp = json.loads(stamp_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = {plan.key()} if plan.dev else {plan.key(), with_dev(plan).key()}
    return isinstance(stamp, dict) and stamp.get("key") in wanted and plan.python.exists()


def with_dev(plan: Plan) -> Plan:
    """The same plan with the test and lint tools."""
    return replace(plan, dev=True)


def make_venv(plan: Plan) -> None:
    """Create the environment, unless a working one is there."""
    if plan.python.exists():
        works = subprocess.run([plan.python, "-m", "pip", "--version"], capture_output=True, check=False)
        if works.returncode == 0:
            return
    try:
        run([sys.executable, "-m", "venv", "--clear", str(plan.venv)], plan)
    except SetupError as error:
        hint = "Debian and Ubuntu keep the module in the package python3-venv; PYTHON=... names another interpreter"
        raise SetupError(f"{error}\n\nhint: {hint}") from None


def install_cpu_torch(plan: Plan) -> None:
    """Install torch's CPU build; where pip finds none, the default build, and say so."""
    version = pinned_version("torch")
    if installed_version(plan, "torch").split("+")[0] == version:
        return
    index = ["--extra-index-url", plan.torch_index_url] if plan.torch_index_url else []
    if pip(plan, "install", "--no-deps", *index, f"torch=={version}+cpu", check=False) == 0:
        return
    print(
        f"      pip finds no CPU build of torch {version} (it would be named {version}+cpu).\n"
        "      Installing the default build, which on Linux brings several GB of CUDA libraries.\n"
        "      To avoid that: stop, set TORCH_INDEX_URL to PyTorch's package index of CPU builds, start again.",
        flush=True,
    )
    pip(plan, "install", f"torch=={version}")


def install_pinned(plan: Plan) -> None:
    """Install the lock, each package without its own requirements."""
    lines = [line for path in plan.requirement_files for line in path.read_text(encoding="utf-8").splitlines()]
    # torch is there already, perhaps as a build that a second look at the indexes would replace.
    pins = [line for line in lines if line and not line.startswith(("#", "torch=="))]
    pip(plan, "install", "--no-deps", *pins)


def install_cuda_stack(plan: Plan) -> None:
    """Install SGLang with everything that it asks for."""
    # setuptools builds dlm-sglang in the next stage.
    pip(plan, "install", "setuptools>=77", *(word for path in plan.requirement_files for word in ("-r", str(path))))


def install_ourselves(plan: Plan) -> None:
    """Install this repository, and on CPU the start-up line that lets torchvision's CUDA wheel import."""
    target = ["--editable", str(ROOT)] if plan.editable else [str(ROOT)]
    pip(plan, "install", "--no-deps", "--no-build-isolation", "--force-reinstall", *target)
    if plan.device == "cpu":
        run([str(plan.python), "-m", "dlm_sglang.torchvision_cpu"], plan)


def check_imports(plan: Plan) -> None:
    """Import what every process of the server imports."""
    run([str(plan.python), "-c", CHECK_PROGRAM], plan)


def pinned_version(name: str) -> str:
    """The version of a package in the CPU lock."""
    for line in (REQUIREMENTS / "cpu.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}=="):
            return line.partition("==")[2].strip()
    raise SetupError(f"deploy/requirements/cpu.txt does not pin {name}")


def installed_version(plan: Plan, name: str) -> str:
    """The version of a package in the environment, or an empty string."""
    program = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    found = subprocess.run([plan.python, "-c", program, name], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def pip(plan: Plan, *arguments: str, check: bool = True) -> int:
    """Run the environment's pip quietly, with its full log beside the stamp."""
    log = str(plan.venv / LOG_NAME)
    quiet = ["-qq", "--disable-pip-version-check", "--no-input", "--log", log]
    return run([str(plan.python), "-m", "pip", *arguments[:1], *quiet, *arguments[1:]], plan, check=check)


def run(command: Sequence[str], plan: Plan, *, check: bool = True) -> int:
    """Run a command, print that it still works now and then, and show what it said when it fails."""
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=STILL_WORKING_S)
                break
            except subprocess.TimeoutExpired:
                print(f"      still working, {time.monotonic() - begun:.0f} s", flush=True)
            except BaseException:
                process.terminate()
                raise
    if check and process.returncode != 0:
        tail = "\n".join(output.splitlines()[-20:])
        raise SetupError(
            f"{' '.join(command[:6])} ... ended with {process.returncode}\n{tail}\n\n"
            f"hint: pip's full log is {plan.venv / LOG_NAME}"
        )
    return process.returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
