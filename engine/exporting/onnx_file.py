"""Open a classifier in an ONNX file, an export of ours or anyone's, to measure it with ONNX Runtime."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.config.classifier import ClassifierConfig
from engine.errors import UserError
from engine.exporting.calling import as_input
from engine.models.classifier import Classifier
from export.hashed import sha256_of

CPU = "CPUExecutionProvider"
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
FLOATS = {*DTYPES, "tensor(double)"}


@dataclass(frozen=True, kw_only=True)
class OnnxClassifier:
    """A classifier, open in ONNX Runtime."""

    size: tuple[int, int]
    """(H, W) of its images."""
    class_names: tuple[str, ...] | None
    """Names in the order of the logits; None if the file has no JSON that says them."""
    logits: Callable[[Tensor], Tensor]
    """Maps RGB images uint8 [B, 3, H, W] to logits [B, C]."""


def open_onnx(
    path: Path, config: ClassifierConfig | None, size: tuple[int, int] | None, threads: int
) -> OnnxClassifier:
    """Open the model at `path` as the JSON next to it says, else as `config` says.

    Without a JSON of ours, the model must take one batch of images [B, C, H, W] that are normalized outside.

    Args:
        config: the settings of the classifier: channels, mean, std, classes; they count only without a JSON.
        size: (H, W) of the images, with `config`.

    Raises:
        UserError: if the file cannot be opened, is not the one that its JSON describes, or has other inputs
            or outputs.
    """
    about = _description(path)
    session = _session(path, about, threads)
    if about is not None:
        name, output = about["input"]["name"], about["output"]["name"]

        def pixels(images: Tensor) -> NDArray[Any]:
            return as_input(about, images.cpu().numpy())

        class_names = tuple(about["output"]["classes"])
        return OnnxClassifier(
            size=(about["input"]["height"], about["input"]["width"]),
            class_names=class_names,
            logits=_runner(session, name, output, pixels, len(class_names), path),
        )
    if config is None or size is None:
        raise UserError(
            f"--onnx {path} has no {path.stem}.json next to it, so its classes, size, mean and std are "
            "unknown; add --recipe R, whose student section says them"
        )
    name, dtype = _input(session, config, size, path)
    adapter = Classifier(
        nn.Identity(),
        num_classes=config.classes,
        in_channels=config.channels,
        mean=config.normalization[0],
        std=config.normalization[1],
        feature_path=None,
    )

    def adapted(images: Tensor) -> NDArray[Any]:
        return np.ascontiguousarray(adapter.adapted(images.cpu().float() / 255).numpy().astype(dtype))

    output = _output(session, config, path)
    logits = _runner(session, name, output, adapted, config.classes, path)
    return OnnxClassifier(size=size, class_names=None, logits=logits)


def _description(path: Path) -> dict[str, Any] | None:
    """Return the JSON that an export wrote next to the model, or None without one.

    Raises UserError if it is damaged or describes another file.
    """
    card = path.with_suffix(".json")
    if not card.is_file():
        return None
    try:
        about: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))
        hashes, _ = about["sha256"], (about["input"]["name"], about["output"]["classes"])
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{card} is not the JSON of an export ({error}); restore it, or move it away"
        ) from None
    for name, known in hashes.items():
        file = path.parent / name
        if file.suffix != ".engine" and (not file.is_file() or sha256_of(file) != known):
            raise UserError(
                f"{file} is not the file that {card.name} describes; restore it, or export it again"
            )
    return about


def _session(path: Path, about: dict[str, Any] | None, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    wanted = CPU if about is None else about["options"].get("provider", CPU)
    providers = [wanted] if wanted in onnxruntime.get_available_providers() else [CPU]
    if not path.is_file():
        raise UserError(f"--onnx {path} does not exist; give an ONNX file")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise UserError(f"--onnx {path} cannot be opened in ONNX Runtime ({_line(error)})") from error


def _input(session: Any, config: ClassifierConfig, size: tuple[int, int], path: Path) -> tuple[str, Any]:
    """Return name and data type of the only input."""
    inputs = session.get_inputs()
    wanted = (config.in_channels, *size)
    fits = len(inputs) == 1 and len(inputs[0].shape) == 4 and inputs[0].type in DTYPES
    if not fits or any(
        isinstance(side, int) and side != want for side, want in zip(inputs[0].shape[1:], wanted, strict=True)
    ):
        given = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise UserError(
            f"--onnx {path} takes {given}, but the recipe's student takes float images [B, "
            f"{', '.join(map(str, wanted))}]; give the recipe of this model"
        )
    return inputs[0].name, DTYPES[inputs[0].type]


def _output(session: Any, config: ClassifierConfig, path: Path) -> str:
    """Return the name of the output that holds the logits."""
    outputs = {each.name: each.shape for each in session.get_outputs() if each.type in FLOATS}
    named = [name for name in outputs if name == config.output]
    shaped = [name for name, shape in outputs.items() if _logits_shape(shape)[1:] == [config.num_classes]]
    found = named or shaped or list(outputs)
    if len(found) != 1:
        given = ", ".join(f"{each.name} {each.type} {each.shape}" for each in session.get_outputs())
        raise UserError(
            f"--onnx {path} returns {given}; name the one that holds the {config.num_classes} logits in "
            "student.output"
        )
    return str(found[0])


def _runner(
    session: Any,
    name: str,
    output: str,
    pixels: Callable[[Tensor], NDArray[Any]],
    num_classes: int,
    path: Path,
) -> Callable[[Tensor], Tensor]:
    """Return a function from images to logits; a model of a fixed batch size gets batches of that size.

    It raises UserError if the model cannot run, or its output is not [B, num_classes]. Sides of 1 after these
    do not count.
    """
    (given,) = (each for each in session.get_inputs() if each.name == name)
    fixed = given.shape[0] if isinstance(given.shape[0], int) else None

    def logits(images: Tensor) -> Tensor:
        inputs = pixels(images)
        rows, found = fixed or len(inputs), []
        for start in range(0, len(inputs), rows):
            part = inputs[start : start + rows]
            try:
                values = session.run([output], {name: _filled(part, fixed)})[0]
            except Exception as error:  # onnxruntime's errors share no base class of their own
                raise UserError(f"--onnx {path} cannot run ({_line(error)})") from error
            if _logits_shape(values.shape) != [rows, num_classes]:
                raise UserError(
                    f"--onnx {path} returns {output} {list(values.shape)} for {rows} images, not [{rows}, "
                    f"{num_classes}]; give the recipe of this model"
                )
            found.append(values.reshape(rows, num_classes)[: len(part)])
        return torch.from_numpy(np.concatenate(found).astype(np.float32))

    return logits


def _logits_shape(shape: Sequence[Any]) -> list[Any]:
    """Return a shape without the sides of 1 after the first two, which a pooling may leave."""
    sides = list(shape)
    while len(sides) > 2 and sides[-1] == 1:
        sides.pop()
    return sides


def _filled(part: NDArray[Any], rows: int | None) -> NDArray[Any]:
    """Return the part with its last row repeated up to `rows`."""
    missing = 0 if rows is None else rows - len(part)
    return np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def require_same_classes(
    model: OnnxClassifier, class_names: Sequence[str], size: tuple[int, int], path: Path
) -> None:
    """Raise UserError if the JSON of the model names other classes or another size than the recipe."""
    if model.class_names is not None and (model.class_names, model.size) != (tuple(class_names), size):
        raise UserError(
            f"--onnx {path}: {path.stem}.json says other classes or another size than the recipe; leave out "
            "--run and --recipe, or give those of this model"
        )
