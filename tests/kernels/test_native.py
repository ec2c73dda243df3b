"""The native module: its stub, the processor's features, and malloc."""

import ast
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import kernels
from kernels import _native

LINUX_FLAGS = {"avx2": "avx2", "avx512f": "avx512f", "avx512_bf16": "avx512_bf16", "amx_bf16": "amx_bf16"}

COUNT_PAGE_FAULTS = """
import resource, sys
import kernels

def faults_of_ten_large_blocks():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        block = bytearray(48 << 20)
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = faults_of_ten_large_blocks()
assert kernels.retain_freed_memory()
faults_of_ten_large_blocks()
print(returned, faults_of_ten_large_blocks())
"""


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo to compare with")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="not an x86-64 processor")
def test_cpu_features_are_those_linux_lists() -> None:
    line = next(row for row in Path("/proc/cpuinfo").read_text().splitlines() if row.startswith("flags"))
    flags = set(line.split(":")[1].split())
    assert set(kernels.cpu_features()) == LINUX_FLAGS.keys() & flags


@pytest.mark.skipif(platform.machine() in ("x86_64", "AMD64"), reason="an x86-64 processor")
def test_cpu_features_are_empty_off_x86() -> None:
    assert kernels.cpu_features() == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_retain_freed_memory_spares_page_faults() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_PAGE_FAULTS], capture_output=True, text=True, check=True
    )
    returned, retained = map(int, done.stdout.split())
    assert returned > 10
    assert retained * 10 < returned


@pytest.mark.skipif(platform.libc_ver()[0] == "glibc", reason="malloc is glibc's")
def test_retain_freed_memory_returns_false_without_glibc() -> None:
    assert kernels.retain_freed_memory() is False


def test_the_stub_names_what_the_module_has() -> None:
    stub = ast.parse(Path(kernels.__file__).with_name("_native.pyi").read_text())
    typed = {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert typed == {name for name in vars(_native) if not name.startswith("_")}
    assert typed >= set(kernels.__all__)
