"""The committed record of what every shipped variant compiles to for sm_90."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dlm_kernels.testing.gates import Measured
from dlm_kernels.testing.kernel_sources import hash_of_sources, kernel_modules
from dlm_kernels.testing.shipped_variant import ShippedVariant

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "sm90-variants.json"
COMMAND = "make compile-kernels"


@dataclass(frozen=True)
class Entry:
    """One variant: the digest of what it was compiled from, and what came out."""

    spec: str
    measured: Measured


@dataclass
class ModuleRecord:
    """The variants of one kernel module, and the hash of the sources that they were compiled from."""

    sources: str
    variants: dict[str, Entry] = field(default_factory=dict)


@dataclass
class Record:
    """All of it.

    Attributes:
        triton: version of the compiler.
        sources: hash of all kernel sources.
        modules: by name below `dlm_kernels.ops`.
    """

    triton: str
    sources: str
    modules: dict[str, ModuleRecord] = field(default_factory=dict)

    def measured(self, variant: ShippedVariant) -> Measured:
        """What is recorded of a variant.

        Raises:
            KeyError: it is not recorded.
        """
        return self.modules[variant.spec.module].variants[variant.name].measured

    def failures(self, shipped: Mapping[str, Mapping[str, ShippedVariant]]) -> list[str]:
        """The gates that recorded variants break, one line each."""
        return [
            f"{module} {name}: {failure}"
            for module, name, variant in each_variant(shipped)
            if module in self.modules and name in self.modules[module].variants
            for failure in variant.gates.failures(self.modules[module].variants[name].measured)
        ]


def each_variant(shipped: Mapping[str, Mapping[str, ShippedVariant]]) -> Iterator[tuple[str, str, ShippedVariant]]:
    """Module, name and variant of each."""
    for module, variants in shipped.items():
        for name, variant in variants.items():
            yield module, name, variant


def reusable(record: Record | None, shipped: Mapping[str, Mapping[str, ShippedVariant]], triton_version: str) -> Record:
    """What of a record is true still: same compiler, same sources, compiled as it is shipped now."""
    kept = Record(triton_version, hash_of_sources(kernel_modules()))
    for module, variants in shipped.items():
        fresh = kept.modules[module] = ModuleRecord(hash_of_sources([module]))
        old = None if record is None or record.triton != triton_version else record.modules.get(module)
        if old is not None and old.sources == fresh.sources:
            fresh.variants = {
                name: old.variants[name]
                for name, variant in variants.items()
                if name in old.variants and old.variants[name].spec == variant.spec.digest()
            }
    return kept


def load(path: Path = RECORD) -> Record | None:
    """Read a record; None where there is none."""
    if not path.exists():
        return None
    read = json.loads(path.read_text(encoding="utf-8"))
    modules = {}
    for module, fields in read["modules"].items():
        entries = {name: _entry(dict(values)) for name, values in fields["variants"].items()}
        modules[module] = ModuleRecord(fields["sources"], entries)
    return Record(read["triton"], read["sources"], modules)


def save(record: Record, path: Path = RECORD) -> None:
    """Write a record, one variant a line, so that a change shows as the lines that it changed."""
    head = {"triton": record.triton, "target": "sm_90", "command": COMMAND, "sources": record.sources}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    modules = []
    for module, fields in record.modules.items():
        variants = [
            f"   {json.dumps(name)}: {json.dumps({'spec': entry.spec, **asdict(entry.measured)})}"
            for name, entry in sorted(fields.variants.items())
        ]
        modules.append(
            f'  {json.dumps(module)}: {{\n   "sources": {json.dumps(fields.sources)},\n   "variants": {{\n'
            + ",\n".join(variants)
            + "\n   }\n  }"
        )
    text = "\n".join(["{", *lines, ' "modules": {', ",\n".join(modules), " }", "}"]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A run that is cut off must not leave half a file.
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _entry(values: dict[str, object]) -> Entry:
    spec = str(values.pop("spec"))
    # JSON has no tuples.
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    # The file holds what `asdict` made of a `Measured`; JSON does not tell the type checker so.
    return Entry(spec, Measured(**fields))  # type: ignore[arg-type]
