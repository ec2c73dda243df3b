"""Micro-batches are halved if memory runs out, as faked and real errors of the libraries report it."""

import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.cli.main import main
from engine.errors import OutOfMemoryError, UserError
from engine.runtime.micro_batch import MicroBatch, is_out_of_memory
from export.errors import ExportError

GPU_MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 512.00 MiB free."


def fits(most: int, error: Exception, tried: list[int]) -> Callable[[slice], list[int]]:
    """Return work that returns the indices of a piece, and raises `error` for more than `most`."""

    def work(piece: slice) -> list[int]:
        tried.append(piece.stop - piece.start)
        if piece.stop - piece.start > most:
            raise error
        return list(range(piece.start, piece.stop))

    return work


def flat(pieces: Any) -> list[int]:
    return [index for piece in pieces for index in piece]


@pytest.mark.parametrize(("count", "size"), [(0, 4), (1, 4), (4, 4), (9, 4), (5, 1)])
def test_pieces_cover_all_in_order(count: int, size: int) -> None:
    tried: list[int] = []
    assert flat(MicroBatch("augment", size).over(count, fits(size, ValueError(), tried))) == list(
        range(count)
    )
    assert tried == [min(size, count - begin) for begin in range(0, count, size)]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(GPU_MESSAGE),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you"),
        MemoryError("std::bad_alloc"),
    ],
    ids=["GPU", "CPU", "C++"],
)
def test_the_size_stays_halved_and_the_same_images_run_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tried: list[int] = []
    micro_batch = MicroBatch("augment", 16)
    assert flat(micro_batch.over(20, fits(5, error, tried))) == list(range(20))
    assert tried == [16, 8, 4, 4, 4, 4, 4]
    assert caplog.messages == [
        "augment: out of memory with 16 images at once, continuing with 8; set augment.micro_batch: 8 in the"
        " recipe",
        "augment: out of memory with 8 images at once, continuing with 4; set augment.micro_batch: 4 in the"
        " recipe",
    ]
    assert flat(micro_batch.over(8, fits(5, error, tried))) == list(range(8))
    assert tried[7:] == [4, 4]
    assert len(caplog.messages) == 2


def test_a_last_piece_that_fails_is_halved_itself() -> None:
    tried: list[int] = []
    micro_batch = MicroBatch("filter", 100)
    assert flat(micro_batch.over(6, fits(2, MemoryError(), tried))) == list(range(6))
    assert tried == [6, 3, 1, 1, 1, 1, 1, 1]


def test_a_single_image_that_does_not_fit_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    micro_batch = MicroBatch("filter", 2)

    def command(_: object) -> None:
        list(micro_batch.over(3, fits(0, torch.OutOfMemoryError(GPU_MESSAGE), [])))

    assert main(command, []) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: filter: out of memory with a single image; ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes"), ValueError("x"), OSError(12, "ENOMEM")]
)
def test_other_errors_are_raised_as_they_are(error: Exception) -> None:
    tried: list[int] = []
    with pytest.raises(type(error)) as caught:
        list(MicroBatch("filter", 8).over(8, fits(0, error, tried)))
    assert caught.value is error
    assert tried == [8]


def test_our_own_error_is_not_mistaken_for_one_of_a_library() -> None:
    assert not is_out_of_memory(OutOfMemoryError("synthesize: out of memory. with 200 images"))


class FromOnnxRuntime(Exception):
    """Like ONNX Runtime's exceptions, which derive directly from Exception."""

    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


IN_NODE = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
    "Name:'/conv_in/Conv' Status Message: "
)
OUT_OF_MEMORY = {
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9, host": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    "cuDNN 9, device": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cuDNN's kernels": RuntimeError(
        "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many dynamic shapes, "
        "cuDNN may need additional device memory to JIT-compile shape-specialized kernels."
    ),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuSOLVER": RuntimeError(
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"
    ),
    "cuSPARSE": RuntimeError(
        "CUDA error: CUSPARSE_STATUS_INSUFFICIENT_RESOURCES when calling `cusparseSpMM(handle)`"
    ),
    "cuFFT": RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    "runtime": torch.AcceleratorError(
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/\n"
        "CUDA kernel errors might be asynchronously reported at some other API call"
    ),
    "driver": RuntimeError("CUDA driver error: out of memory"),
    "NVML": RuntimeError(
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":995, please '
        "report a bug to PyTorch. "
    ),
    "TensorRT": ExportError(
        "TensorRT 10.9: execution failed: [virtualMemoryBuffer.cpp::resizePhysical::160] Error Code 2: "
        "OutOfMemory (no further information); choose another --runtime"
    ),
    "TensorRT's CUDA": ExportError(
        "TensorRT 10.9: execution failed: [defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime "
        "(out of memory); choose another --runtime"
    ),
    "OpenVINO's C++": RuntimeError(
        "Exception from src/inference/src/cpp/compiled_model.cpp:128:\nException from "
        "src/core/src/runtime/allocator.cpp:79:\nstd::bad_alloc\n\n"
    ),
    "ONNX Runtime's arena": FromOnnxRuntime(
        IN_NODE + "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::"
        "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested "
        "buffer of size 2830172160"
    ),
    "ONNX Runtime's cuBLAS": FromOnnxRuntime(
        IN_NODE + "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h ; expr=cublasCreate(&h);"
    ),
    "ONNX Runtime's CUDA": FromOnnxRuntime(
        IN_NODE + "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; expr=cudaMalloc((void**)&p, size);"
    ),
}
OTHER = {
    "illegal address": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "mapped memory": RuntimeError("CUDA error: part or all of the requested memory range is mapped"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "cuDNN inside": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`"),
    "cuFFT": RuntimeError("cuFFT error: CUFFT_INVALID_SIZE"),
    "NVML elsewhere": RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/Other.cpp":1'),
    "capture": RuntimeError("CUDA error: operation failed due to a previous error during capture"),
    "ONNX Runtime": FromOnnxRuntime(IN_NODE + "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0"),
    "TensorRT": ExportError("TensorRT 10.9: execution failed: Error Code 1: Cask; choose another --runtime"),
    "OutOfMemoryError": OutOfMemoryError("synthesize: out of memory with 200 images at once"),
    "UserError": UserError("the recipe mentions out of memory"),
    "ValueError": ValueError("CUDNN_STATUS_ALLOC_FAILED"),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY.keys())
def test_every_librarys_out_of_memory_error_halves_the_size(error: Exception) -> None:
    tried: list[int] = []
    assert flat(MicroBatch("augment", 8).over(8, fits(4, error, tried))) == list(range(8))
    assert tried == [8, 4, 4]


@pytest.mark.parametrize("error", OTHER.values(), ids=OTHER.keys())
def test_other_errors_are_not_mistaken_for_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


RUNTIMES = {
    "openvino": """
import openvino
from openvino import opset13
x = opset13.parameter([-1, 4 << 20], np.float32, name="x")
model = openvino.Model([opset13.exp(opset13.tile(x, opset13.constant([256, 1])))], [x])
queue = openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU"))
def run(x):
    queue.start_async({0: x})
    queue.wait_all()
""",
    "onnxruntime": """
import onnxruntime
from onnx import TensorProto, helper
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in "xz"]
times = helper.make_tensor("times", TensorProto.INT64, [2], [200, 1])
nodes = [helper.make_node("Tile", ["x", "times"], ["y"]), helper.make_node("Exp", ["y"], ["z"])]
model = helper.make_model(
    helper.make_graph(nodes, "g", values[:1], values[1:], [times]),
    opset_imports=[helper.make_opsetid("", 17)],
    ir_version=8,
)
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
def run(x):
    session.run(None, {"x": x})
""",
}
RUN_OUT = """
import resource
import numpy as np
from engine.runtime.micro_batch import is_out_of_memory
{runtime}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000,) * 2)
try:
    run(np.ones((1, 4 << 20), np.float32))
except Exception as error:
    print(is_out_of_memory(error), error)
"""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_real_error_of_a_runtime_is_recognised(runtime: str) -> None:
    """One tensor needs more than 3 GB, but the process may allocate only 0.6 GB more."""
    pytest.importorskip(runtime)
    found = subprocess.run(
        [sys.executable, "-c", RUN_OUT.format(runtime=RUNTIMES[runtime])],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert found.stdout.startswith("True "), found.stdout


REAL = """
import logging, resource, sys
import torch
from engine.runtime.micro_batch import MicroBatch

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000,) * 2)
MB = 1 << 20
sums = MicroBatch("augment", 64).over(64, lambda piece: torch.ones(piece.stop - piece.start, 16 * MB).sum(1))
print(int(torch.cat(list(sums)).sum()) == 64 * 16 * MB)
"""


def test_the_hosts_real_error_is_recognised_and_the_memory_is_freed() -> None:
    """All at once need 4 GiB, but the process may allocate only 0.6 GB more."""
    found = subprocess.run(
        [sys.executable, "-c", REAL], capture_output=True, text=True, timeout=200, check=False
    )
    assert found.stderr == ""
    *logged, last = found.stdout.splitlines()
    assert last == "True"
    sizes = [int(line.split("continuing with ")[1].split(";")[0]) for line in logged]
    assert sizes[:3] == [32, 16, 8]
    assert sizes[-1] in (8, 4)
