"""Compile a Triton kernel for an NVIDIA GPU that this machine does not have, and read the machine code.

The compiler, assembler and disassembler are all inside the Triton wheel, so registers, spills, shared memory, pipeline
buffers and instructions per loop can be gates of an ordinary CPU test. Kernels must have been decorated without
`TRITON_INTERPRET=1`.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

# The most that one block may use on sm_90.
MAX_SHARED_BYTES = 227 * 1024

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_BRANCH_TARGET = re.compile(r"0x([0-9a-f]+)")
# A multi-buffered shared allocation of the pipeliner: `!ttg.memdesc<3x64x128xbf16, #shared, #smem, mutable>`.
_PIPELINE_BUFFER = re.compile(r"ttg\.local_alloc\s*:\s*\(\)\s*->\s*!ttg\.memdesc<([0-9x]+)x([a-z]\w*),[^>]*mutable")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: its address, its full opcode and its operands as text."""

    address: int
    opcode: str
    operands: str


@dataclass(frozen=True)
class InnerLoop:
    """A loop of the machine code that has no other loop inside.

    Attributes:
        begin: address of the first instruction.
        end: address of the branch back.
        instructions: everything between, the branch included; code after an early exit counts too.
    """

    begin: int
    end: int
    instructions: tuple[Instruction, ...]

    @property
    def num_instructions(self) -> int:
        return len(self.instructions)

    def count(self, *prefixes: str) -> int:
        """Number of instructions whose opcode starts with one of `prefixes` (`"MUFU"`, `"BAR"`, `"LDG"`)."""
        return sum(instruction.opcode.startswith(prefixes) for instruction in self.instructions)

    def histogram(self) -> Counter[str]:
        """Number of instructions by opcode, modifiers dropped."""
        return Counter(instruction.opcode.split(".")[0] for instruction in self.instructions)


@dataclass(frozen=True)
class PipelineBuffer:
    """A shared-memory ring of the software pipeliner: `num_buffers` tiles of `shape`."""

    num_buffers: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class OfflineKernel:
    """What the compiler made of one variant.

    Attributes:
        name: the kernel's name.
        n_regs: registers of a thread.
        stack_bytes: local memory of a thread; above 0 when registers spill or an array is indexed at run time.
        shared_bytes: shared memory of a block.
        num_warps: warps of a block.
        ttgir: Triton's GPU dialect, after pipelining.
        ptx: the assembler's input.
        sass: the disassembly.
    """

    name: str
    n_regs: int
    stack_bytes: int
    shared_bytes: int
    num_warps: int
    ttgir: str = field(repr=False)
    ptx: str = field(repr=False)
    sass: str = field(repr=False)

    @cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """The machine code in order."""
        return tuple(
            Instruction(int(address, 16), opcode, operands.strip())
            for address, opcode, operands in _INSTRUCTION.findall(self.sass)
        )

    @property
    def n_spills(self) -> int:
        """Number of loads and stores of local memory in the machine code."""
        return sum(instruction.opcode.startswith(("LDL", "STL")) for instruction in self.instructions)

    @cached_property
    def inner_loops(self) -> tuple[InnerLoop, ...]:
        """Loops without a loop inside, in address order."""
        spans = [
            (int(target[1], 16), instruction.address)
            for instruction in self.instructions
            if instruction.opcode.startswith("BRA") and (target := _BRANCH_TARGET.search(instruction.operands))
        ]
        # A branch to itself is the trap after the kernel's end.
        loops = sorted({(begin, end) for begin, end in spans if begin < end})
        return tuple(
            InnerLoop(begin, end, tuple(i for i in self.instructions if begin <= i.address <= end))
            for begin, end in loops
            if not any(begin <= other[0] and other[1] <= end and other != (begin, end) for other in loops)
        )

    @cached_property
    def pipeline_buffers(self) -> tuple[PipelineBuffer, ...]:
        """Rings that the pipeliner allocated, in program order."""
        found = []
        for dims, dtype in _PIPELINE_BUFFER.findall(self.ttgir):
            num_buffers, *shape = (int(size) for size in dims.split("x"))
            if len(shape) >= 2:
                found.append(PipelineBuffer(num_buffers, tuple(shape), dtype))
        return tuple(found)

    def blocks_per_sm(self) -> int:
        """Blocks that fit one sm_90 multiprocessor by registers, shared memory and threads."""
        threads = 32 * self.num_warps
        # Registers are handed out to a warp in units of 256.
        regs_of_warp = -(-self.n_regs * 32 // 256) * 256
        by_regs = 65536 // (regs_of_warp * self.num_warps)
        by_shared = (228 * 1024) // (self.shared_bytes + 1024)
        return min(by_regs, by_shared, 2048 // threads, 32)


def compile_kernel(
    kernel: object,
    signature: Mapping[str, str],
    constexprs: Mapping[str, object],
    *,
    num_warps: int = 4,
    num_stages: int = 3,
    aligned: Collection[str] | None = None,
    capability: int = 90,
) -> OfflineKernel:
    """Compile one variant of a kernel for `sm_<capability>`.

    Args:
        kernel: the function that `triton.jit` returned.
        signature: Triton type of every argument that is not a constexpr: `"*bf16"`, `"i32"`, `"fp32"`.
        constexprs: value of every constexpr argument; a pointer that is left out in a call is a constexpr `None`.
        num_warps: warps of a block.
        num_stages: pipeline depth.
        aligned: arguments that are multiples of 16, as the launcher finds out at run time; default: the pointers.
        capability: compute capability, 90 for Hopper.

    Returns:
        Resources, intermediate code and machine code.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arg_names: list[str] = kernel.arg_names  # type: ignore[attr-defined]
    missing = [name for name in arg_names if name not in signature and name not in constexprs]
    unknown = [name for name in (*signature, *constexprs) if name not in arg_names]
    if missing or unknown:
        raise ValueError(f"every kernel argument needs a type or a value: missing {missing}, unknown {unknown}")
    if aligned is None:
        aligned = [name for name, kind in signature.items() if kind.startswith("*")]
    types = {name: signature.get(name, "constexpr") for name in arg_names}
    attrs = {(arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=types, constexprs=dict(constexprs), attrs=attrs)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage, sass = _inspect(compiled.asm["cubin"])
    return OfflineKernel(
        name=compiled.metadata.name,
        n_regs=_number(usage, "REG"),
        stack_bytes=_number(usage, "STACK") + _number(usage, "LOCAL"),
        shared_bytes=compiled.metadata.shared,
        num_warps=num_warps,
        ttgir=compiled.asm["ttgir"],
        ptx=compiled.asm["ptx"],
        sass=sass,
    )


def _inspect(cubin: bytes) -> tuple[str, str]:
    """Resource table and disassembly of a binary."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run(
                [knobs.nvidia.cuobjdump.path, flag, file.name], check=True, capture_output=True, text=True
            ).stdout
            for flag in ("-res-usage", "-sass")
        )
    return usage, sass


def _number(usage: str, key: str) -> int:
    found = re.search(rf"\b{key}:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"{key} not found in the resource table of the binary: {usage!r}")
    return int(found[1])
