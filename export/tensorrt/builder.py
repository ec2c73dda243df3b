"""Build engines from ONNX graphs. Engines are strongly typed: the graph's tensors set the precision."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from export.errors import ExportError, RuntimeUnavailableError
from export.fingerprint import files_hash
from export.tensorrt import targets
from export.tensorrt.bindings import LOGGER, VERSION, trt
from export.tensorrt.options import BuildOptions
from export.tensorrt.progress import OnProgress, reporting

Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, Shape, Shape]]
"""(min, opt, max) shapes of each input by name."""


def build_engine(
    onnx_path: Path, engine_path: Path, shapes: Shapes, options: BuildOptions, on_progress: OnProgress
) -> None:
    """Build the engine of a graph and write it to `engine_path`.

    The graph's external data must have been checked. `on_progress` gets the phase of the build, the steps
    done and the total. Ctrl-C ends the build at its next step.

    Raises ExportError if the engine cannot be built; RuntimeUnavailableError, a subclass, if the build
    depended on the current GPU.
    """
    targets.check(options)
    LOGGER.take()
    builder = trt.Builder(LOGGER)
    network = builder.create_network()
    parser = _parse(network, onnx_path)
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, shapes, onnx_path))
    targets.set_targets(config, options)
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, but float32 in the graph means float32
    if options.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.refit == "stripped":
        config.set_flag(trt.BuilderFlag.REFIT)
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    with reporting(config, on_progress):
        engine = builder.build_serialized_network(network, config)
    del parser  # it owns the weights that the network points to, so it lives until here
    if engine is None:
        kind = RuntimeUnavailableError if targets.needs_gpu(options) else ExportError
        raise kind(
            f"{onnx_path}: {VERSION} could not build an engine: {LOGGER.take()}; choose another --runtime"
        )
    with engine_path.open("wb") as file:
        file.write(engine)


def engine_key_parts(shapes: Shapes, options: BuildOptions) -> dict[str, str]:
    """Return the parts of an engine's cache key, without its graph; log lines name the changed ones."""
    targets.check(options)
    return {
        "builder": VERSION,
        "code": files_hash((__file__, targets.__file__)),
        "shapes": json.dumps(dict(shapes), sort_keys=True),
        "workspace": str(options.workspace_bytes),
        "refit": options.refit,
        "compute capabilities": ", ".join(options.compute_capabilities),
        "device": targets.device(options),
    }


def first_error(get_error: Callable[[int], trt.ParserError], num_errors: int) -> str:
    """Describe the first error of a parser: the node and the reason."""
    if not num_errors:
        return LOGGER.take()
    error = get_error(0)
    node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_operator() else ""
    return f"{node}{' '.join(error.desc().split())}"


def _parse(network: trt.INetworkDefinition, onnx_path: Path) -> trt.OnnxParser:
    """Parse a graph into `network`. The parser must live as long as the network is used."""
    parser = trt.OnnxParser(network, LOGGER)
    if not parser.parse_from_file(str(onnx_path)):
        error = first_error(parser.get_error, parser.num_errors)
        raise ExportError(f"{onnx_path}: {VERSION} cannot parse the graph: {error}; choose another --runtime")
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in (*_inputs(network), *outputs):
        if tensor.dtype != trt.DataType.FLOAT:
            raise ExportError(f"{onnx_path}: {tensor.name} is not float32; cast inside the graph")
    return parser


def _profile(
    builder: trt.Builder, network: trt.INetworkDefinition, shapes: Shapes, onnx_path: Path
) -> trt.IOptimizationProfile:
    graph = {given.name: tuple(given.shape) for given in _inputs(network)}
    if graph.keys() != shapes.keys():
        raise ExportError(
            f"{onnx_path}: the inputs are {', '.join(graph)}, but shapes has {', '.join(shapes)};"
            " give a shape for each input"
        )
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in shapes.items():
        if not _fits(graph[name], least, best, most):
            sizes = f"min {least}, opt {best}, max {most}"
            raise ExportError(f"{onnx_path}: input {name} has shape {graph[name]}, which cannot take {sizes}")
        profile.set_shape(name, least, best, most)
    return profile


def _inputs(network: trt.INetworkDefinition) -> list[trt.ITensor]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def _fits(graph: Shape, least: Shape, best: Shape, most: Shape) -> bool:
    """Return whether the sizes ascend and equal the graph's fixed sizes; -1 in the graph means any size."""
    return len(graph) == len(least) == len(best) == len(most) and all(
        0 < low <= middle <= high and fixed in (-1, low) and (fixed == -1 or low == high)
        for fixed, low, middle, high in zip(graph, least, best, most, strict=True)
    )
