"""Finished measurements as JSON lines: a line is on disk before the next measurement begins."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlm_sglang.errors import SettingsError, shown

FORMAT = 1
RUN, MEASUREMENT = "run", "measurement"
Line = dict[str, object]


@dataclass(frozen=True)
class Results:
    """A results file: what all lines have in common, and the lines.

    Attributes:
        equal: what must be equal in two runs that are compared or continued.
        about: what is worth knowing and may differ: machine, versions, time.
    """

    path: Path
    equal: Mapping[str, object]
    about: Mapping[str, object]
    lines: tuple[Line, ...]


class Store:
    """Appends measurements to a file and knows which ones it holds."""

    def __init__(self, path: Path, equal: Mapping[str, object], about: Mapping[str, object], *, resume: bool) -> None:
        """Open or create the file.

        Raises:
            SettingsError: it exists and `resume` is not set, or it holds a run that differs in `equal`.
        """
        self.path = path
        self.lines: list[Line] = []
        if path.exists() and path.stat().st_size > 0:
            if not resume:
                raise SettingsError(
                    f"{path} exists", code="results-exist", hint="--resume continues it; or name another file"
                )
            results = read_results(path)
            refuse_differences(results.equal, equal, str(path), "this run")
            self.lines = list(results.lines)
            _cut_unfinished_line(path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._append({"kind": RUN, "format": FORMAT, "equal": dict(equal), "about": dict(about)})

    def has(self, key: Mapping[str, object]) -> bool:
        """Whether a measurement with this key is finished."""
        return any(line["key"] == key for line in self.lines)

    def add(self, key: Mapping[str, object], **content: object) -> Line:
        """Write a finished measurement."""
        line: Line = {"kind": MEASUREMENT, "key": dict(key), **content}
        self._append(line)
        self.lines.append(line)
        return line

    def _append(self, line: Mapping[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_results(path: Path) -> Results:
    """Read a results file; a last line that was cut off by a crash is left out.

    Raises:
        SettingsError: it is not such a file.
    """
    try:
        texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}", code="results-unreadable") from None
    parsed: list[Line] = []
    for text in texts:
        if not text.endswith("\n"):
            break
        try:
            parsed.append(json.loads(text))
        except ValueError:
            raise _not_ours(path, text) from None
    if not parsed or parsed[0].get("kind") != RUN or parsed[0].get("format") != FORMAT:
        raise _not_ours(path, texts[0] if texts else "")
    equal, about = parsed[0]["equal"], parsed[0]["about"]
    assert isinstance(equal, dict)
    assert isinstance(about, dict)
    return Results(path, equal, about, tuple(line for line in parsed[1:] if line.get("kind") == MEASUREMENT))


def read_together(paths: Sequence[Path]) -> tuple[list[Line], Results]:
    """The lines of several runs, and the first run.

    Raises:
        SettingsError: one is not a results file, or they measured different things.
    """
    runs = [read_results(path) for path in paths]
    for other in runs[1:]:
        refuse_differences(runs[0].equal, other.equal, str(runs[0].path), str(other.path))
    return [line for results in runs for line in results.lines], runs[0]


def refuse_differences(
    first: Mapping[str, object], second: Mapping[str, object], first_name: str, second_name: str
) -> None:
    """Refuse to put two runs side by side that measured different things.

    Raises:
        SettingsError: names every difference.
    """
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    if names:
        told = "; ".join(
            f"{name}: {shown(first.get(name))} in {first_name}, {shown(second.get(name))} in {second_name}"
            for name in names
        )
        raise SettingsError(
            f"the runs cannot be compared, they differ in {told}",
            code="runs-differ",
            hint="measure both with the same model, prompts and sampling",
        )


def numbers_of(line: Line) -> dict[str, float | None]:
    """The numbers of a measurement; empty where the server refused its setting."""
    numbers = line.get("numbers")
    return numbers if isinstance(numbers, dict) else {}


def select(lines: Sequence[Line], **key: object) -> list[Line]:
    """The measurements whose key has these values."""
    found = []
    for line in lines:
        own = line["key"]
        if isinstance(own, dict) and all(own.get(name) == value for name, value in key.items()):
            found.append(line)
    return found


def _cut_unfinished_line(path: Path) -> None:
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])


def _not_ours(path: Path, text: str) -> SettingsError:
    return SettingsError(
        f"{path} is not a results file of this version, it begins with {shown(text)}",
        code="results-unreadable",
        hint="name another file",
    )
