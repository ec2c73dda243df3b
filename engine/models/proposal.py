"""Propose a student: a network of the teacher's family at a tenth to a quarter of its cost."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.config.classifier import ClassifierConfig
from engine.errors import UserError
from engine.models import networks
from engine.models.sources import build
from engine.models.torch_file import first_line

CHEAPEST, DEAREST = 1 / 10, 1 / 4
"""Range of a proposed student's cost, as a share of the teacher's."""
SMALL_IMAGE = 96
"""Up to this side in pixels, the engine's own networks fit."""
LARGE_LADDER = (
    *(f"timm:mobilenetv3_small_{width}" for width in ("050", "075", "100")),
    *(f"timm:regnetx_{size}" for size in ("002", "004", "006", "008", "016", "032", "064")),
)
"""Networks of 0.02 to 6.5 GMAC at 224 pixels, for families without a member in range."""
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
    counted: list[tuple[int, str]] = []
    for names, where in ((_family(teacher), "of the same family"), (_ladder(teacher), "a common network")):
        counted = [(found, each) for each in names if (found := _cost_or_none(teacher, each)) is not None]
        in_range = [(found, each) for found, each in counted if CHEAPEST <= found / budget <= DEAREST]
        if in_range:
            found, each = min(in_range, key=lambda pair: _distance(pair[0] / budget))
            return _proposal(each, found, budget, where)
    assert counted, "no common network runs at this size"
    below = [pair for pair in counted if pair[0] < DEAREST * budget]
    found, each = max(below) if below else min(counted)
    return _proposal(each, found, budget, "the nearest common network")


def cost(config: ClassifierConfig) -> int:
    """Return the multiplications of a forward pass over one image of a resolved configuration.

    Counts matrix products and convolutions. Builds the network without memory for its weights if its
    constructor allows that.
    """
    try:
        return _counted(config, torch.device("meta"))
    except Exception:  # not every network runs on the meta device
        return _counted(config, torch.device("cpu"))


def _counted(config: ClassifierConfig, device: torch.device) -> int:
    with torch.random.fork_rng(devices=[]), device, torch.no_grad():
        network = build(config, "student").eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, config.channels, *config.size))
    return max(1, counter.get_total_flops() // 2)


def _cost_or_none(teacher: ClassifierConfig, name: str) -> int | None:
    """Return the cost of another network for the teacher's images, or None if it does not run on them."""
    try:
        return _counted(replace(teacher, name=name, feature=None, output=None), torch.device("meta"))
    except Exception:  # of a whole library, not every network takes this size
        return None


def _family(teacher: ClassifierConfig) -> list[str]:
    source, _, own = teacher.name.partition(":")
    if source == "timm":
        import timm

        known = timm.list_models()
    elif source == "torchvision":
        import torchvision.models as zoo

        known = zoo.list_models(module=zoo)
    else:
        known = list(networks.__all__) if source == "engine" else []
    kind = SIZE.sub("#", own)
    return [f"{source}:{name}" for name in known if name != own and SIZE.sub("#", name) == kind]


def _ladder(teacher: ClassifierConfig) -> Iterable[str]:
    if max(teacher.size) > SMALL_IMAGE:
        return LARGE_LADDER
    return (f"engine:{name}" for name in networks.__all__ if name.startswith(("wrn", "resnet")))


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
