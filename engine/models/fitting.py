"""Find the mapping in a weight file that fits a network, and read the widths of its outer layers.

Every error says what the file holds.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from engine.errors import UserError
from engine.models.torch_file import first_line, pickled_kind
from engine.models.unwrapping import INNER

logger = logging.getLogger(__name__)

DEPTH = 6
"""Maximum nesting of the mappings that are searched."""
TOP = "."
"""Name of the file's outermost mapping."""
COUNTER = "num_batches_tracked"
AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""torchvision's names of the heads that run in training alone."""
NAMED = 3
"""Number of mappings that a message describes."""
LISTED = 8
"""Number of mappings that a message lists by name."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A part of a file that may hold a network's weights."""

    name: str
    """Dotted path in the file, including the common prefix of its keys."""
    values: dict[str, object]
    """Values by the network's key."""
    missing: list[str]
    """Keys of the network that the part lacks."""
    unexpected: list[str]
    """Keys of the part that the network lacks."""


def fit(
    network: nn.Module,
    content: object,
    *,
    key: str | None = None,
    num_classes: int,
    section: str,
    file: Path,
) -> None:
    """Load into `network` the mapping in `content` that has all of its keys after a common prefix.

    Counters and integer tables that the network does not have are ignored.

    Args:
        key: dotted path of the mapping, needed if several fit.
        section: section of the recipe that names `file`.

    Raises:
        UserError: if no mapping fits (the message says how it differs), or if several fit with different
            values and `key` is None.
    """
    if _match_auxiliary_heads(network, content):
        logger.info(
            "%s.weights has no auxiliary heads, so the network converts its input from ImageNet's "
            "normalization, as torchvision's pretrained one does; if it was trained from scratch, give a "
            "factory that builds it with aux_logits=False",
            section,
        )
    state = network.state_dict()
    candidates = _all_candidates(_with_current_names(content, network), state, key, section, file)
    misfits = [_misfit(c, state, num_classes, section) for c in candidates]
    fitting = [c for c, misfit in zip(candidates, misfits, strict=True) if misfit is None]
    if not fitting:
        described = [(c, misfit) for c, misfit in zip(candidates, misfits, strict=True) if misfit is not None]
        raise UserError(f"{section}.weights: {_describe(described, file)}")
    if any(not _same(fitting[0], other) for other in fitting[1:]):
        raise UserError(
            f"{section}.weights: '{file}' holds several state dicts that fit {section}.name, with different "
            f"values: {_list(fitting)}; choose one, e.g. --{section}.weights_key {fitting[-1].name}"
        )
    values = OrderedDict(fitting[0].values)
    values._metadata = state._metadata  # type: ignore[attr-defined]  # MNASNet asks for its version
    try:
        network.load_state_dict(values, strict=False)
    except RuntimeError as error:
        raise UserError(
            f"{section}.weights: '{file}' cannot be loaded into {section}.name ({first_line(error)})"
        ) from error


class Widths(NamedTuple):
    """Widths of a network's outer layers; None if its weights do not tell."""

    num_classes: int | None
    in_channels: int | None


def widths(
    network: nn.Module,
    content: object,
    *,
    key: str | None = None,
    num_classes: int,
    in_channels: int,
    section: str,
    file: Path,
) -> Widths:
    """Return for how many classes and input channels the weights in `content` were trained.

    Args:
        network: built for `num_classes` and `in_channels`. The classes are read right only if no other layer
            has their number.
        key: as for `fit`.
        section: section of the recipe that names `file`.

    Raises:
        UserError: if no mapping has the network's keys, or if several do and differ in these widths.
    """
    _match_auxiliary_heads(network, content)
    state = network.state_dict()
    candidates = _all_candidates(_with_current_names(content, network), state, key, section, file)
    whole = [c for c in candidates if not c.missing and not c.unexpected]
    if not whole:
        described = [(c, _misfit(c, state, num_classes, section) or "") for c in candidates]
        raise UserError(f"{section}.weights: {_describe(described, file)}")
    found = {_widths(c, state, num_classes, in_channels) for c in whole}
    if len(found) > 1:
        raise UserError(
            f"{section}.weights: '{file}' holds several state dicts that fit {section}.name, with different "
            f"numbers of classes: {_list(whole)}; choose one, e.g. --{section}.weights_key {whole[-1].name}"
        )
    return found.pop()


def auxiliary_heads(network: nn.Module) -> list[str]:
    """Return the names of the auxiliary heads of torchvision's googlenet or inception_v3."""
    if not hasattr(network, "transform_input"):
        return []
    return [name for name in AUXILIARY if isinstance(getattr(network, name, None), nn.Module)]


def _match_auxiliary_heads(network: nn.Module, content: object) -> bool:
    """Remove the auxiliary heads of a network if the file has none. Return whether it did.

    torchvision's pretrained networks have none (inception_v3 only if asked for), and convert their input from
    ImageNet's normalization to the one that they were trained with. So the network does so, too.
    """
    heads = auxiliary_heads(network)
    given = {part for _, mapping in _mappings(content) for key in mapping for part in key.split(".")}
    if not heads or given & set(heads):
        return False
    for name in heads:
        setattr(network, name, None)
    vars(network).update(aux_logits=False, transform_input=True)
    return True


def _widths(candidate: Candidate, state: Mapping[str, object], num_classes: int, in_channels: int) -> Widths:
    classes = channels = None
    for key, given in candidate.values.items():
        mine = state[key]
        if not isinstance(given, Tensor) or not isinstance(mine, Tensor) or given.ndim != mine.ndim:
            continue
        for side, given_side in zip(mine.shape, given.shape, strict=True):
            if side == num_classes:
                classes = given_side
        if mine.ndim == 4 and mine.shape[1] == in_channels and channels is None:
            channels = given.shape[1]  # the first convolution over the image
    return Widths(classes, channels)


def _with_current_names(content: object, network: nn.Module) -> object:
    """Rename the keys in a file to those of the installed transformers, if `network` is of that library.

    It renames modules from version to version, but files keep the names of the version that published them.
    """
    kinds = {kind.__module__.partition(".")[0] for each in network.modules() for kind in type(each).__mro__}
    if "transformers" not in kinds:
        return content
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    model = next((each for each in network.modules() if isinstance(each, PreTrainedModel)), None)
    if model is None:
        return content
    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]

    def renamed(part: object, depth: int = DEPTH) -> object:
        if not isinstance(part, Mapping) or not depth:
            return part
        current: dict[object, object] = {}
        for name, value in part.items():
            is_weight = isinstance(name, str) and isinstance(value, Tensor)
            key = rename_source_key(name, renamings, converters)[0] if is_weight else name
            current[key] = renamed(value, depth - 1)
        return current if len(current) == len(part) else part

    return renamed(content)


def _all_candidates(
    content: object, state: Mapping[str, object], key: str | None, section: str, file: Path
) -> list[Candidate]:
    """Return the parts of a file that may hold a network's weights; with `key`, only those under it."""
    wanted = _bare(state)
    candidates = [
        c for name, mapping in _mappings(content) for c in _candidates(name, mapping, state, wanted)
    ]
    if not candidates:
        raise UserError(
            f"{section}.weights: '{file}' {_without_tensors(content)}, not a state dict; "
            "save the state_dict()"
        )
    if key is None:
        return candidates
    named = [c for c in candidates if c.name == key]
    named = named or [c for c in candidates if c.name.startswith(f"{key}.")]
    if not named:
        raise UserError(
            f"{section}.weights_key: '{file}' has no weights under '{key}'; it has {_list(candidates)}"
        )
    return named


def _mappings(content: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield (dotted path, entries with text keys) of every mapping that holds a tensor, outer ones first."""
    entries: Iterable[tuple[object, object]] = ()
    if isinstance(content, Mapping):
        entries = content.items()
        named = {name: value for name, value in content.items() if isinstance(name, str)}
        if any(isinstance(value, Tensor) for value in named.values()):
            yield ".".join(path), named
    elif isinstance(content, list | tuple):
        entries = enumerate(content)
    if len(path) < DEPTH:
        for name, value in entries:
            yield from _mappings(value, (*path, str(name)))


def _candidates(
    name: str, mapping: Mapping[str, object], state: Mapping[str, object], wanted: Mapping[str, str]
) -> list[Candidate]:
    """Return a candidate per prefix under which `mapping` has all keys of the network, else the nearest one.

    `state` holds the network's entries by key, `wanted` its keys by bare key.
    """
    bare = _bare(mapping)
    counts = Counter(key[: len(key) - len(end)] for key in bare for end in _ends(key) if end in wanted)
    required = [k for k in wanted if isinstance(state[wanted[k]], Tensor) and not k.endswith(COUNTER)]
    whole = [prefix for prefix in counts if all(prefix + key in bare for key in required)]
    nearest = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")
    candidates = []
    for prefix in whole or [nearest]:
        inner = tuple(longer for longer in whole if len(longer) > len(prefix))
        around = [key for key in bare if key.startswith(prefix) and not key.startswith(inner)]
        candidates.append(
            Candidate(
                name=".".join(filter(None, (name, prefix[:-1]))) or TOP,
                values={wanted[key]: mapping[bare[prefix + key]] for key in wanted if prefix + key in bare},
                missing=[wanted[key] for key in required if prefix + key not in bare],
                unexpected=[
                    bare[key]
                    for key in around
                    if key.removeprefix(prefix) not in wanted and _is_float(mapping[bare[key]])
                ],
            )
        )
    return candidates


def _bare(keys: Iterable[str]) -> dict[str, str]:
    """Map each key without its wrappers' names to the key, or to itself if that would merge two keys."""
    keys = list(keys)
    bare = {".".join(part for part in key.split(".") if part not in INNER): key for key in keys}
    return bare if len(bare) == len(keys) else {key: key for key in keys}


def _ends(key: str) -> Iterator[str]:
    """Yield a.b.c, b.c and c for the key a.b.c."""
    while key:
        yield key
        key = key.partition(".")[2]


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _misfit(candidate: Candidate, state: Mapping[str, object], num_classes: int, section: str) -> str | None:
    """Return why a candidate does not fit, phrased to follow the file's name; None if it fits."""
    pairs = {
        key: (given, mine)
        for key, given in candidate.values.items()
        if isinstance(given, Tensor) and isinstance(mine := state[key], Tensor) and not is_lazy(mine)
    }
    for key, (given, mine) in pairs.items():
        if mine.ndim and not _convertible(given, mine):
            quantized = ": quantized weights; give the float checkpoint" if mine.is_floating_point() else ""
            return f"has {_dtype(given)} values in `{key}`, {_dtype(mine)} in the network{quantized}"
    if candidate.missing or candidate.unexpected:
        lists = (_first_of(candidate.missing, "missing"), _first_of(candidate.unexpected, "unexpected"))
        return f"does not fit {section}.name: {'; '.join(filter(None, lists))}"
    differing = {key: (a.shape, b.shape) for key, (a, b) in pairs.items() if a.shape != b.shape}
    if not differing:
        return None
    key, (given_shape, own_shape) = next(iter(differing.items()))
    if all(_differ_in_classes(*shapes, num_classes) for shapes in differing.values()):
        classes = f"{section}.num_classes is {num_classes}"
        return f"has {given_shape[0]} classes in `{key}`, but {classes}; make them agree"
    more = f" and {len(differing) - 1} more differ" if len(differing) > 1 else ""
    return (
        f"does not fit {section}.name: `{key}` is {list(given_shape)} in the file and {list(own_shape)} "
        f"in the network{more}"
    )


def _convertible(given: Tensor, mine: Tensor) -> bool:
    """Return whether both hold floats or both integers; one-byte floats do not count, as they need scales."""
    small = given.is_floating_point() and given.element_size() < min(2, mine.element_size())
    return given.is_floating_point() == mine.is_floating_point() and not small


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _same(first: Candidate, second: Candidate) -> bool:
    """Return whether both hold the same values, apart from counters."""
    for key, value in first.values.items():
        other = second.values.get(key)
        if not isinstance(value, Tensor) or not isinstance(other, Tensor):
            continue
        is_counter = not value.ndim and not value.is_floating_point()
        if not is_counter and (value.dtype != other.dtype or not torch.equal(value, other)):
            return False
    return True


def _describe(misfits: Sequence[tuple[Candidate, str]], file: Path) -> str:
    """Describe the closest candidates in one line."""
    ranked = sorted(misfits, key=lambda misfit: -len(misfit[0].values))
    ranked = [(c, misfit) for c, misfit in ranked if c.values] or ranked
    if len(ranked) == 1:
        candidate, misfit = ranked[0]
        return f"{'' if candidate.name == TOP else f'`{candidate.name}` of '}'{file}' {misfit}"
    closest = "; ".join(f"`{c.name}` {misfit}" for c, misfit in ranked[:NAMED])
    more = f"; and {len(ranked) - NAMED} more" if len(ranked) > NAMED else ""
    return f"nothing in '{file}' fits: {closest}{more}"


def _without_tensors(content: object) -> str:
    """Describe a file that holds no mapping of tensors."""
    if kind := pickled_kind(content):
        return f"holds a whole pickled {kind}"
    if isinstance(content, Mapping) and content:
        names = ", ".join(f"`{name}` ({_kind(value)})" for name, value in list(content.items())[:NAMED])
        more = f" and {len(content) - NAMED} more" if len(content) > NAMED else ""
        return f"holds {names}{more}"
    return f"holds a {type(content).__name__}"


def _kind(value: object) -> str:
    kind = pickled_kind(value)
    return type(value).__name__ if kind is None else f"a pickled {kind}"


def _list(candidates: Sequence[Candidate]) -> str:
    near = [candidate for candidate in candidates if candidate.values] or candidates
    more = f" and {len(near) - LISTED} more" if len(near) > LISTED else ""
    return ", ".join(f"`{candidate.name}`" for candidate in near[:LISTED]) + more


def _first_of(keys: list[str], what: str) -> str:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"`{keys[0]}`{more} {what}" if keys else ""


def _differ_in_classes(given: torch.Size, mine: torch.Size, num_classes: int) -> bool:
    return mine[:1] == (num_classes,) and len(given) == len(mine) and given[1:] == mine[1:]
