from pathlib import Path

import pytest
import torch

from export.errors import ExportError, RuntimeUnavailableError
from export.tensorrt.options import FILE, BuildOptions
from tests.export.tensorrt.graphs import SHAPES, convolution, saved

pytest.importorskip("tensorrt_rtx")

from export.tensorrt import loading
from export.tensorrt.bindings import LOGGER, trt
from export.tensorrt.builder import build_engine
from export.tensorrt.loading import diagnosis, load_engine


def test_every_diagnosis_has_a_description() -> None:
    assert set(loading.DIAGNOSES) == set(trt.EngineInvalidityDiagnostics.__members__)


def test_a_diagnosis_lists_all_reasons() -> None:
    flags = trt.EngineInvalidityDiagnostics
    assert diagnosis(flags.UNSUPPORTED_CC.value) == "the engine was not built for this compute capability"
    both = flags.OLD_CUDA_DRIVER.value | flags.INSUFFICIENT_GPU_MEMORY.value
    assert diagnosis(both) == "the CUDA driver is too old and it has too little memory"


def test_without_a_diagnosis_the_log_gives_the_reason() -> None:
    LOGGER.take()
    LOGGER.log(trt.ILogger.Severity.ERROR, "no driver")
    assert diagnosis(0) == "no driver"


def test_bytes_that_are_not_an_engine_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_gpu", lambda: "a GPU")
    with pytest.raises(
        RuntimeUnavailableError, match="cannot run the engine on a GPU: the file is not an engine"
    ):
        load_engine(b"no engine" * 100, weights=None)


@pytest.mark.gpu
@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
def test_an_engine_for_other_gpus_is_rejected_with_the_reason(
    tmp_path: Path, capability: tuple[int, int]
) -> None:
    if torch.cuda.get_device_capability() != capability:
        pytest.skip(f"needs compute capability {capability}")
    path = saved(convolution(), tmp_path)
    build_engine(path, tmp_path / FILE, SHAPES, BuildOptions(compute_capabilities=("8.9",)), lambda *_: None)
    with pytest.raises(RuntimeUnavailableError, match="the engine was not built for this compute capability"):
        load_engine((tmp_path / FILE).read_bytes(), weights=None)


@pytest.mark.gpu
def test_a_stripped_engine_accepts_only_the_weights_of_its_graph(tmp_path: Path) -> None:
    path = saved(convolution(), tmp_path)
    build_engine(path, tmp_path / FILE, SHAPES, BuildOptions(refit="stripped"), lambda *_: None)
    engine = (tmp_path / FILE).read_bytes()
    load_engine(engine, weights=path)
    other = saved(convolution(size=5), tmp_path / "other")
    with pytest.raises(ExportError, match="cannot refit the engine"):
        load_engine(engine, weights=other)
