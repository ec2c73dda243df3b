"""The files that runtimes open, from the store or built into it: ONNX graphs and TensorRT engines."""

from pathlib import Path
from typing import NamedTuple

from engine.config.tensorrt import TensorRtConfig
from engine.runtime.build_progress import BuildProgress
from engine.runtime.place import Place
from export.fingerprint import onnx_parts
from export.onnx import FILE, check_external_data, write_onnx
from export.spec import NetworkSpec
from export.store import Key
from export.tensorrt.options import FILE as ENGINE
from export.tensorrt.options import BuildOptions


class Graph(NamedTuple):
    """An ONNX file and the digest of what it was made from."""

    path: Path
    digest: str


def graph(spec: NetworkSpec, place: Place) -> Graph:
    """The graph of `spec` that the place's runtime reads; OpenVINO computes in bf16 from one in fp32.

    Raises ExportError for one in the store that was altered or whose weights lie outside its folder.
    """
    precision = "fp32" if place.runtime == "openvino" else place.precision
    key = Key(network=spec.name, kind="onnx", precision=precision, parts=onnx_parts(spec))
    entry = place.store.get(key, lambda folder: write_onnx(spec, precision, folder))
    check_external_data(entry / FILE)
    return Graph(entry / FILE, key.digest)


def engine(spec: NetworkSpec, given: Graph, place: Place) -> Path:
    """The store's entry of the TensorRT engine of a graph; the module of `spec` is not looked at."""
    from export.tensorrt.builder import build_engine, engine_key_parts

    options = build_options(place.tensorrt)
    shapes = spec.shapes()
    parts = {"graph": given.digest, **engine_key_parts(shapes, options)}
    key = Key(network=spec.name, kind="tensorrt", precision=place.precision, parts=parts)

    def build(folder: Path) -> None:
        with BuildProgress(spec.name, place.say) as progress:
            build_engine(given.path, folder / ENGINE, shapes, options, progress.step)

    return place.store.get(key, build)


def build_options(config: TensorRtConfig) -> BuildOptions:
    """The recipe's settings as the builder takes them."""
    return BuildOptions(
        workspace_bytes=None if config.workspace_gb is None else int(config.workspace_gb * 1e9),
        refit=config.refit,
        compute_capabilities=tuple(map(str, config.compute_capabilities)),
    )
