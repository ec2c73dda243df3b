"""Detect images whose labels the teacher confirms no more often than chance."""

from collections import Counter
from dataclasses import dataclass, field
from math import sqrt

from engine.bank.rows import Int, Rows

MIN_IMAGES = 32
"""Fewer images are never judged."""
STANDARD_ERRORS, EXTRA_IMAGES = 3, 2
"""An agreement is above chance if it exceeds chance by this many standard errors plus this many images. The
images matter with many classes, where the expected count is close to 0 and its distribution skewed."""
NEAR_CHANCE, MAX_MARGIN = 0.1, 0.25
"""Shares of the distance from chance to full agreement: below the first an agreement is still near chance; if
the margin of error exceeds the second, there are too few images to judge."""
_ADVICE_ON_SOURCES = "raise synthesize.steps, lower synthesize.w_bn, or check teacher.mean and teacher.std"
_ADVICE_ON_VARIATIONS = (
    "try another augment.prior, augment.class_condition text, a lower augment.strength, "
    "or augment.method none"
)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How often the teacher agrees with the labels of some images; can be summed over shards."""

    agreeing: int = 0
    """Number of images whose label is the teacher's top-1 class."""
    labels: Counter[int] = field(default_factory=Counter)
    """Number of images by label."""
    predictions: Counter[int] = field(default_factory=Counter)
    """Number of images by the teacher's top-1 class."""

    @classmethod
    def of(cls, labels: Int, top1: Int) -> "Agreement":
        """Count the agreement of labels [N] with the teacher's top-1 classes [N]."""
        return cls(
            agreeing=int((labels == top1).sum()),
            labels=Counter(labels.tolist()),
            predictions=Counter(top1.tolist()),
        )

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            agreeing=self.agreeing + other.agreeing,
            labels=self.labels + other.labels,
            predictions=self.predictions + other.predictions,
        )

    @property
    def images(self) -> int:
        """Number of images."""
        return self.labels.total()

    @property
    def share(self) -> float:
        """Share of the images with agreement; 0 without images."""
        return self.agreeing / self.images if self.images else 0.0

    @property
    def chance(self) -> float:
        """Expected share of agreement if the same predictions were assigned to the images at random."""
        return self._pairs / self.images**2

    @property
    def is_near_chance(self) -> bool:
        """Whether the agreement is near chance; False for too few images, and for a single label."""
        images = self.images
        if images < MIN_IMAGES or len(self.labels) < 2:
            return False
        share, chance, room = self.share, self.chance, 1 - self.chance
        margin = STANDARD_ERRORS * self._standard_error + EXTRA_IMAGES / images
        if margin > MAX_MARGIN * room:
            return False
        return share <= chance + margin or share < min(2 * chance, chance + NEAR_CHANCE * room)

    @property
    def _pairs(self) -> int:
        """Number of pairs of one image's label and any image's prediction that are equal."""
        return sum(count * self.predictions[label] for label, count in self.labels.items())

    @property
    def _standard_error(self) -> float:
        """Standard error of the agreement over all permutations of the predictions (Hoeffding 1951)."""
        images, pairs = self.images, self._pairs
        both = sum(
            count * self.predictions[label] * (count + self.predictions[label])
            for label, count in self.labels.items()
        )
        variance = (pairs - both / images + pairs**2 / images**2) / (images - 1)
        return sqrt(max(variance, 0.0)) / images

    def sentence(self, what: str) -> str:
        """Return the agreement in words. `what` names the images, in the plural."""
        return (
            f"the teacher agrees with the label of {self.share:.1%} of {self.images:,} "
            f"{what}, and chance is {self.chance:.1%}"
        )


@dataclass(frozen=True, kw_only=True)
class Agreements:
    """The agreement of the synthesized images, and of all their variations, including rejected ones."""

    sources: Agreement = Agreement()
    variations: Agreement = Agreement()

    @classmethod
    def of(cls, rows: Rows) -> "Agreements":
        """Count the agreement in the rows of a shard."""
        varied = rows.parents >= 0
        return cls(
            sources=Agreement.of(rows.labels[~varied], rows.teacher_top1[~varied]),
            variations=Agreement.of(rows.labels[varied], rows.teacher_top1[varied]),
        )

    def __add__(self, other: "Agreements") -> "Agreements":
        return Agreements(sources=self.sources + other.sources, variations=self.variations + other.variations)

    @property
    def warning(self) -> str | None:
        """One line if the sources or else the variations are near chance, with the next step; else None."""
        if self.sources.is_near_chance:
            return f"{self.sources.sentence('synthesized images')}; {_ADVICE_ON_SOURCES}"
        if self.variations.is_near_chance:
            return f"{self.variations.sentence('variations')}; {_ADVICE_ON_VARIATIONS}"
        return None
