"""Build networks by name, and read what their own configuration says of their input and classes."""

import importlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from engine.config.classifier import ClassifierConfig
from engine.errors import UserError
from engine.models import networks
from engine.models.torch_file import first_line
from engine.paths import resolve

HF_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
HF_CONFIG, HF_PROCESSOR = "config.json", "preprocessor_config.json"
SOURCES = "timm:NAME, torchvision:NAME, hf:FOLDER, engine:NAME or package.module:factory"


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a network's own configuration says of its images and classes; None for what it does not say."""

    source: str = "its configuration"
    """Where it says so, for messages."""
    num_classes: int | None = None
    in_channels: int | None = None
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None
    weights: Path | None = None
    """File of its weights, if they come with the configuration."""


def build(config: ClassifierConfig, section: str) -> nn.Module:
    """Build the network that `config.name` names, with random weights on the current device.

    `num_classes`, `in_channels` and `image_size` are passed on if they are set; without them the network
    has its library's defaults. Raises a UserError that names the field of `section` if it cannot be built.
    """
    source, _, name = config.name.partition(":")
    if not source or not name:
        raise UserError(
            f"{section}.name must be {SOURCES}, got '{config.name}'{_meant(config.name, _all_names())}"
        )
    makers = {"engine": _from_engine, "timm": _from_timm, "torchvision": _from_torchvision, "hf": _from_hf}
    try:
        network = makers.get(source, _from_factory)(config, section)
    except UserError:
        raise
    except Exception as error:  # foreign code may raise anything; the recipe chose it by name
        raise UserError(
            f"{section}.name: '{config.name}' cannot be built ({type(error).__name__}: {first_line(error)})"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{section}.name: '{config.name}' returned a {type(network).__name__}, not an nn.Module"
        )
    return network


def stated(config: ClassifierConfig, network: nn.Module, section: str) -> Stated:
    """Return what the configuration of `network`, which `config.name` names, says."""
    source, _, name = config.name.partition(":")
    if source == "torchvision":
        return _stated_by_torchvision(name)
    if source == "hf":
        return _stated_by_hf(name, section)
    return _stated_by_timm(network, "timm" if source == "timm" else config.name)


def _meant(name: str, known: Iterable[str]) -> str:
    """Return a question for the known name that is nearest to `name`, or nothing if none is near."""
    near = {each.rpartition(":")[2]: each for each in reversed([*known])}
    found = get_close_matches(name, near, n=1, cutoff=0.8)
    return f"; did you mean {near[found[0]]}?" if found else ""


def _all_names() -> Iterator[str]:
    """Yield the networks of all libraries as a recipe names them."""
    import timm
    import torchvision.models as zoo

    libraries = {
        "engine": networks.__all__,
        "timm": timm.list_models(),
        "torchvision": zoo.list_models(module=zoo),
    }
    for library, names in libraries.items():
        yield from (f"{library}:{name}" for name in names)


def _from_engine(config: ClassifierConfig, section: str) -> nn.Module:
    name = config.name.removeprefix("engine:")
    if name not in networks.__all__:
        raise UserError(
            f"{section}.name: no network '{name}' in engine; it has {', '.join(networks.__all__)}"
        )
    return getattr(networks, name)(config.num_classes, config.in_channels or 3)


def _from_timm(config: ClassifierConfig, section: str) -> nn.Module:
    import timm

    name = config.name.removeprefix("timm:")
    if not timm.is_model(name):
        raise UserError(
            f"{section}.name: no network '{name}' in timm{_meant(name, timm.list_models())}; "
            "timm.list_models() lists them"
        )
    options: dict[str, Any] = {}
    if config.num_classes is not None:
        options["num_classes"] = config.num_classes
    pretrained = timm.get_pretrained_cfg(name)
    if config.image_size is not None and pretrained is not None and pretrained.fixed_input_size:
        options["img_size"] = config.size
    return timm.create_model(name, pretrained=False, in_chans=config.in_channels or 3, **options)


def _from_torchvision(config: ClassifierConfig, section: str) -> nn.Module:
    import torchvision.models as zoo

    name = config.name.removeprefix("torchvision:")
    if name not in zoo.list_models(module=zoo):
        if name in zoo.list_models():
            module = zoo.get_model_builder(name).__module__  # such as torchvision.models.detection.ssd
            kind = module.split(".")[2].replace("_", " ")
            raise UserError(
                f"{section}.name: '{name}' of torchvision is a network for {kind}, but the engine distills "
                "classifiers; torchvision.models.list_models(module=torchvision.models) lists them"
            )
        raise UserError(
            f"{section}.name: no classifier '{name}' in torchvision"
            f"{_meant(name, zoo.list_models(module=zoo))}; "
            "torchvision.models.list_models(module=torchvision.models) lists them"
        )
    if config.in_channels not in (None, 3):
        raise UserError(f"{section}.in_channels must be 3 for '{config.name}', got {config.in_channels}")
    options: dict[str, Any] = {} if config.num_classes is None else {"num_classes": config.num_classes}
    if config.image_size is not None and name.startswith("vit_") and config.size[0] == config.size[1]:
        options["image_size"] = config.size[0]
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # the default, but torchvision warns that it will change
    return zoo.get_model(name, weights=None, **options)


def _from_hf(config: ClassifierConfig, section: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    folder = _hf_folder(config.name.removeprefix("hf:"), section)
    options: dict[str, Any] = {}
    fields = _json(folder / HF_CONFIG)
    if config.num_classes is not None and config.num_classes != _hf_num_classes(fields):
        options["num_labels"] = config.num_classes
    if config.in_channels is not None and "num_channels" in fields:
        options["num_channels"] = config.in_channels
    if config.image_size is not None and "image_size" in fields:
        options["image_size"] = config.image_size if isinstance(config.image_size, int) else [*config.size]
    of_network = AutoConfig.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False, **options
    )
    if of_network.problem_type == "multi_label_classification":
        raise UserError(
            f"{section}.name: {config.name} is a multi-label classifier (problem_type in {HF_CONFIG}), but "
            "distillation needs exactly one class for each image; use a single-label teacher"
        )
    network: nn.Module = AutoModelForImageClassification.from_config(of_network, trust_remote_code=False)
    return network


def _from_factory(config: ClassifierConfig, section: str) -> nn.Module:
    """Call the factory with those of num_classes, in_channels and image_size that it takes and are known."""
    module, _, name = config.name.partition(":")
    factory = getattr(importlib.import_module(module), name, None)
    if not callable(factory):
        raise UserError(f"{section}.name: module '{module}' has no function '{name}'")
    known: dict[str, Any] = {"num_classes": config.num_classes, "in_channels": config.in_channels or 3}
    if config.image_size is not None:
        known["image_size"] = config.image_size if isinstance(config.image_size, int) else config.size
    network: nn.Module = factory(**{key: known[key] for key in _taken(factory) if known.get(key) is not None})
    return network


def _taken(factory: Any) -> tuple[str, ...]:
    """Return which settings a factory takes; one with **kwargs gets the number of classes and channels."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return "num_classes", "in_channels"
    taken = [name for name in ("num_classes", "in_channels", "image_size") if name in parameters]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return ("num_classes", "in_channels") if takes_any and not taken else tuple(taken)


def _stated_by_timm(network: nn.Module, source: str) -> Stated:
    """Return what a network's `pretrained_cfg` says, which timm's networks have and a factory's may have."""
    given = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {}
    given = given if isinstance(given, Mapping) else vars(given)
    channels, *size = given.get("input_size") or (None,)
    names = given.get("label_names")
    return Stated(
        source="timm's configuration" if source == "timm" else f"the pretrained_cfg of {source}",
        in_channels=None if source == "timm" else channels,
        image_size=_size(size),
        mean=_numbers(given.get("mean")),
        std=_numbers(given.get("std")),
        class_names=tuple(map(str, names)) if names else None,
    )


def _stated_by_torchvision(name: str) -> Stated:
    import torchvision.models as zoo

    preprocessing = zoo.get_model_weights(name).DEFAULT.transforms()
    return Stated(
        source="torchvision's configuration",
        in_channels=3,
        image_size=_size(preprocessing.crop_size * 2),
        mean=_numbers(preprocessing.mean),
        std=_numbers(preprocessing.std),
    )


def _stated_by_hf(name: str, section: str) -> Stated:
    folder = _hf_folder(name, section)
    fields = _json(folder / HF_CONFIG)
    labels = {int(key): str(value) for key, value in (fields.get("id2label") or {}).items()}
    names = tuple(labels[key] for key in sorted(labels))
    is_named = any(value != f"LABEL_{key}" for key, value in labels.items())
    processor = _json(folder / HF_PROCESSOR) if (folder / HF_PROCESSOR).is_file() else {}
    if processor.get("do_flip_channel_order"):
        raise UserError(
            f"{section}.name: the image processor of hf:{name} turns RGB into BGR, which is not supported; "
            "write a factory that returns the network with a layer that flips the channels before it"
        )
    mean, std = _hf_normalization(processor)
    file = next((folder / file for file in HF_WEIGHTS if (folder / file).is_file()), None)
    return Stated(
        source=f"hf:{name}",
        num_classes=_hf_num_classes(fields),
        in_channels=fields.get("num_channels", 3),
        image_size=_hf_size(processor, fields),
        mean=mean,
        std=std,
        class_names=names if is_named else None,
        weights=file,
    )


def _hf_folder(name: str, section: str) -> Path:
    folder = resolve(name, f"{section}.name")
    if not (folder / HF_CONFIG).is_file():
        raise UserError(
            f"{section}.name: '{folder}' has no {HF_CONFIG}; give a folder that save_pretrained() wrote"
        )
    return folder


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); fetch it again") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path} must be a JSON object; fetch it again")
    return fields


def _hf_num_classes(fields: Mapping[str, Any]) -> int:
    """Return the number of classes; transformers leaves it out if it is 2."""
    return len(fields.get("id2label") or ()) or int(fields.get("num_labels", 2))


def _hf_size(processor: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[int, int] | None:
    cropped = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    for given in (cropped, processor.get("size"), fields.get("image_size")):
        if isinstance(given, int | list | tuple):
            return _size([given, given] if isinstance(given, int) else given)
        if isinstance(given, Mapping):
            side = given.get("shortest_edge")
            found = (given.get("height", side), given.get("width", side))
            if None not in found:
                return _size(found)
    return None


def _hf_normalization(
    processor: Mapping[str, Any],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and std for images in [0, 1], however the processor scales pixels of 0 to 255."""
    if not processor:
        return None, None
    rescales = processor.get("do_rescale", True)
    scale = 255 * processor.get("rescale_factor", 1 / 255) if rescales else 255
    offset = 1.0 if rescales and processor.get("rescale_offset") else 0.0  # EfficientNet's scales to [-1, 1]
    normalizes = processor.get("do_normalize", True)
    mean = _numbers(processor.get("image_mean")) if normalizes else (0.0,)
    std = _numbers(processor.get("image_std")) if normalizes else (1.0,)
    if mean is None or std is None:
        return None, None
    scaled_mean = _scaled(tuple(value + offset for value in mean), scale)
    if processor.get("include_top"):  # EfficientNet's divides by image_std once more
        again = _numbers(processor.get("image_std")) or (1.0,)
        std = tuple(first * second for first, second in zip(std * len(again), again, strict=False))
    return scaled_mean, _scaled(std, scale)


def _scaled(values: tuple[float, ...], scale: float) -> tuple[float, ...]:
    return values if abs(scale - 1) < 1e-6 else tuple(value / scale for value in values)


def _size(sides: Any) -> tuple[int, int] | None:
    return (int(sides[0]), int(sides[1])) if sides and len(sides) == 2 else None


def _numbers(values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    return tuple(float(value) for value in (values if isinstance(values, list | tuple) else (values,)))
