"""Compile Triton kernels without a GPU, and read the resources that the machine code takes.

`compile_all` works in its own process, because kernels defined under TRITON_INTERPRET cannot be compiled.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MAIN_ARCHITECTURE = 90  # H100 and H200
OTHER_ARCHITECTURES = (80, 100)  # A100; B200
REGISTERS_PER_SM = 65536

Constant = bool | int | str | None


@dataclass(frozen=True, kw_only=True)
class KernelCase:
    """One specialisation of a kernel."""

    name: str
    """The test id, unique among the cases compiled together"""
    kernel: str
    """package.module:function"""
    signature: dict[str, str]
    """Triton types of the arguments: "*bf16", "i32", "fp32"; ":16" for a multiple of 16 (pointers: bytes)"""
    constexprs: dict[str, Constant] = field(default_factory=dict)
    """Values of the other arguments; None for an absent pointer"""
    num_warps: int = 4
    options: dict[str, Constant] = field(default_factory=dict)
    """Triton's other compiler options, such as maxnreg"""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources that a compiled kernel takes."""

    registers: int
    """Per thread"""
    spills: int
    """Bytes of stack and local memory per thread; 0 if everything fits into registers"""
    shared: int
    """Bytes of shared memory per program"""
    load_bits: int
    """Width of the widest load from global memory"""
    store_bits: int
    """Width of the widest store to global memory"""


def compile_for(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Constant],
    arch: int,
    num_warps: int,
    **options: Constant,
) -> Resources:
    """Compile a kernel that was defined without TRITON_INTERPRET; arch 90 is sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, alignments = {}, {}
    for i, name in enumerate(kernel.arg_names):
        types[name], _, multiple = signature.get(name, "constexpr").partition(":")
        if multiple:
            alignments[i,] = [["tt.divisibility", int(multiple)]]
    compiled = triton.compile(
        ASTSource(kernel, types, dict(constexprs), alignments),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": num_warps, **options},
    )
    usage = _resource_usage(compiled.asm["cubin"])
    return Resources(
        registers=usage["REG"],
        spills=usage["STACK"] + usage["LOCAL"],
        shared=compiled.metadata.shared,
        load_bits=_widest_access("ld", compiled.asm["ptx"]),
        store_bits=_widest_access("st", compiled.asm["ptx"]),
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", listing)}


def _widest_access(instruction: str, ptx: str) -> int:
    accesses = re.findall(rf"\b{instruction}\.global[.:\w]*?(?:\.v(\d))?\.[bfsu](\d+)\b", ptx)
    return max((int(vector or 1) * int(bits) for vector, bits in accesses), default=0)


def compile_all(wanted: Iterable[tuple[KernelCase, int]]) -> dict[tuple[str, int], Resources]:
    """Return the resources by name of the case and architecture."""
    request = json.dumps([{"case": asdict(case), "arch": arch} for case, arch in wanted])
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TRITON_CACHE_DIR": cache, "TRITON_INTERPRET": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.kernels.triton_tools"],
            cwd=Path(__file__).parents[2],
            env=environment,
            input=request,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    return {(row["name"], row["arch"]): Resources(**row["resources"]) for row in rows}


def _compile_request() -> None:
    rows = []
    for row in json.load(sys.stdin):
        case, arch = KernelCase(**row["case"]), row["arch"]
        module, _, function = case.kernel.partition(":")
        kernel = getattr(importlib.import_module(module), function)
        resources = compile_for(kernel, case.signature, case.constexprs, arch, case.num_warps, **case.options)
        rows.append({"name": case.name, "arch": arch, "resources": asdict(resources)})
    print(json.dumps(rows))


if __name__ == "__main__":
    _compile_request()
