"""Build the files that runtimes open, ONNX graphs and TensorRT engines, or find them in the store."""

import logging
import time
from pathlib import Path
from typing import NamedTuple, Self

from engine.config.tensorrt import TensorRtConfig
from engine.runtime.base import RuntimeOptions
from export.fingerprint import onnx_parts
from export.spec import NetworkSpec
from export.store import Key
from export.tensorrt.options import FILE as ENGINE
from export.tensorrt.options import BuildOptions

logger = logging.getLogger(__name__)

LOG_INTERVAL = 10.0
"""Seconds between two log lines of a build."""


class Graph(NamedTuple):
    """An ONNX file and the digest of its inputs."""

    path: Path
    digest: str


def graph(spec: NetworkSpec, options: RuntimeOptions) -> Graph:
    """Return the graph of `spec` in the precision that the runtime reads.

    OpenVINO reads fp32 graphs, also to compute in bf16. Raises ExportError if the stored graph was altered
    or refers to weights outside its folder.
    """
    from export.onnx import FILE, check_external_data, write_onnx

    precision = "fp32" if options.runtime == "openvino" else options.precision
    key = Key(network=spec.name, kind="onnx", precision=precision, parts=onnx_parts(spec))
    entry = options.store.get(key, lambda folder: write_onnx(spec, precision, folder))
    check_external_data(entry / FILE)
    return Graph(entry / FILE, key.digest)


def engine(spec: NetworkSpec, graph: Graph, options: RuntimeOptions) -> Path:
    """Return the store's entry of the TensorRT engine for `graph`. The module of `spec` is not used."""
    from export.tensorrt.builder import build_engine, engine_key_parts

    settings = build_options(options.tensorrt)
    shapes = spec.shapes()
    parts = {"graph": graph.digest, **engine_key_parts(shapes, settings)}
    key = Key(network=spec.name, kind="tensorrt", precision=options.precision, parts=parts)

    def build(folder: Path) -> None:
        with BuildProgress(spec.name) as progress:
            build_engine(graph.path, folder / ENGINE, shapes, settings, progress.step)

    return options.store.get(key, build)


def build_options(config: TensorRtConfig) -> BuildOptions:
    """Convert the recipe's settings to the options of a build."""
    return BuildOptions(
        workspace_bytes=None if config.workspace_gb is None else int(config.workspace_gb * 1e9),
        refit=config.refit,
        compute_capabilities=tuple(map(str, config.compute_capabilities)),
    )


class BuildProgress:
    """Logs the progress of a build: a line every ten seconds, and one at the end."""

    def __init__(self, network: str) -> None:
        self._network = network
        self._start = self._last_log = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            logger.info(f"{self._network}: engine built in {time.monotonic() - self._start:.1f} s")

    def step(self, phase: str, done: int, total: int) -> None:
        """Report `done` of `total` steps of `phase`; phases are nested."""
        now = time.monotonic()
        if now - self._last_log >= LOG_INTERVAL:
            self._last_log = now
            logger.info(f"{self._network}: {now - self._start:.0f} s, {phase} {done}/{total}")
