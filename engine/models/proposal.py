"""Propose a student: a network of the teacher's family at a tenth to a quarter of its cost."""

import math
import re
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engine.config.classifier import ClassifierConfig
from engine.errors import UserError
from engine.models import networks
from engine.models.sources import build
from engine.models.torch_file import first_line

CHEAPEST, DEAREST = 1 / 10, 1 / 4
"""Range of a proposed student's cost, as a share of the teacher's."""
SMALL_IMAGE = 96
"""Up to this side in pixels, the engine's own networks fit best."""
HALVED_IMAGE = 48
"""From this side on, networks for large images, which halve it five times, can be used, too."""
SMALL = {
    "wrn_16_1": 27,
    "wrn_40_1": 83,
    "wrn_16_2": 101,
    "wrn_40_2": 328,
    "resnet_18": 555,
    "resnet_34": 1159,
}
"""The engine's networks, with their million multiplications for an image of 32x32."""
LARGE = {
    "mobilenetv3_small_050": 23,
    "mobilenetv3_small_075": 42,
    "mobilenetv3_small_100": 56,
    "regnetx_002": 199,
    "regnetx_004": 398,
    "regnetx_006": 601,
    "regnetx_008": 800,
    "regnetx_016": 1603,
    "regnetx_032": 3177,
    "regnetx_064": 6460,
}
"""Common networks of timm, with their million multiplications for an image of 224x224."""
IMAGES = "(?:160|176|192|224|240|256|288|300|320|336|384|448|480|512)"
SIZE = re.compile(
    rf"(?<!patch)(?<!window)(?<!\d)(?!{IMAGES}$)\d+|atto|femto|pico|nano|micro|mini|tiny|small|medium|base|large|huge|giant|gigantic|(?<![a-z])[smlx]+(?![a-z])"
)
"""The part of a network's name that says how large it is; patches, windows and images are not its size."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A student for a teacher."""

    name: str
    cost: int
    """Multiplications for one image."""
    reason: str
    """One line that names the student, its cost and how it was found."""


def propose_student(teacher: ClassifierConfig) -> Proposal:
    """Return a student for a resolved teacher.

    Looks in the teacher's family first: networks of the same library whose names differ in their sizes alone.
    Without a member in range, takes a common network. Raises UserError if the teacher cannot run on images of
    its size.
    """
    try:
        budget = cost(teacher)
    except UserError:
        raise
    except Exception as error:  # the network may be anyone's
        size = teacher.size_text
        raise UserError(
            f"teacher.image_size is {size}, but {teacher.name} cannot run on a {size} image "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    counted = [(found, name) for name in _family(teacher) if (found := _cost_or_none(teacher, name))]
    in_range = [(found, name) for found, name in counted if CHEAPEST <= found / budget <= DEAREST]
    if in_range:
        found, name = min(in_range, key=lambda pair: _distance(pair[0] / budget))
        return _proposal(name, found, budget, "of the same family")
    name = _common_network(teacher, budget)
    found = cost(replace(teacher, name=name, feature=None, output=None))
    return _proposal(name, found, budget, "a common network")


def cost(config: ClassifierConfig) -> int:
    """Return the multiplications of a forward pass over one image of a resolved configuration.

    Counts matrix products and convolutions. Builds the network without memory for its weights if its
    constructor allows that.
    """
    of_network = replace(config, weights=None, weights_key=None, mean=None, std=None)
    return _cost(replace(of_network, output=None, feature=None))


@cache
def _cost(config: ClassifierConfig) -> int:
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.random.fork_rng(devices=[]):
                return _count(build(config, "student"), config)
        except Exception:  # not every network runs on the meta device
            if device == "cpu":
                raise
    raise AssertionError


def _count(network: nn.Module, config: ClassifierConfig) -> int:
    """Return the multiplications of a forward pass of `network` over one image on the current device."""
    device = next(iter(network.parameters())).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, config.channels, *config.size, device=device))
    return max(1, counter.get_total_flops() // 2)


def _cost_or_none(teacher: ClassifierConfig, name: str) -> int | None:
    """Return the cost of another network for the teacher's images, or None if it does not run on them."""
    config = replace(teacher, name=name, feature=None, output=None)
    try:
        with torch.device("meta"):
            return _count(build(config, "student"), config)
    except Exception:  # of a whole library, not every network takes this size
        return None


def _family(teacher: ClassifierConfig) -> list[str]:
    source, _, own = teacher.name.partition(":")
    if source == "timm":
        import timm

        known = timm.list_models()
        own = own.partition(".")[0]  # what follows is a tag, which names weights
    elif source == "torchvision":
        import torchvision.models as zoo

        known = zoo.list_models(module=zoo)
    else:
        known = list(networks.__all__) if source == "engine" else []
    alike = (name for name in known if name != own and SIZE.sub("#", name) == SIZE.sub("#", own))
    return [f"{source}:{name}" for name in alike if _numbers(name) <= _numbers(own)]


def _numbers(name: str) -> list[int]:
    """Return the sizes in a network's name that are numbers; a larger one means a larger network."""
    return [int(size) for size in SIZE.findall(name) if size.isdigit()]


def _common_network(teacher: ClassifierConfig, budget: int) -> str:
    """Return the dearest common network of at most a quarter of the teacher's cost, or else the cheapest."""
    ladders = _ladders(*teacher.size)
    for ladder in ladders:
        below = [name for name, about in ladder.items() if about <= DEAREST * budget]
        if below:
            return max(below, key=ladder.__getitem__)
    everything = {name: about for ladder in ladders for name, about in ladder.items()}
    return min(everything, key=everything.__getitem__)


def _ladders(height: int, width: int) -> list[dict[str, float]]:
    """Return common networks with about their multiplications for an image, the best ones for it first."""
    small = {f"engine:{name}": 1e6 * about * height * width / 32**2 for name, about in SMALL.items()}
    large = {f"timm:{name}": 1e6 * about * height * width / 224**2 for name, about in LARGE.items()}
    if max(height, width) > SMALL_IMAGE:
        return [large]
    return [small, large] if min(height, width) >= HALVED_IMAGE else [small]


def _distance(share: float) -> float:
    """Return how far a share of the teacher's cost is from the middle of the range, in octaves."""
    return abs(math.log2(share / math.sqrt(CHEAPEST * DEAREST)))


def _proposal(name: str, found: int, budget: int, where: str) -> Proposal:
    reason = f"{name}, {where}: {found / 1e6:,.0f} million multiplications an image, {_share(found / budget)}"
    return Proposal(name=name, cost=found, reason=reason)


def _share(share: float) -> str:
    if share < 1:
        return f"1/{1 / share:.1f} of the teacher's; --student.name chooses another"
    return f"{share:.1f} times the teacher's; a smaller one needs --student.name"
