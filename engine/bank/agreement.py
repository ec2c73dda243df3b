"""Whether the teacher sees in the images what their labels say, more often than chance would have it."""

from collections import Counter
from dataclasses import dataclass, field
from math import sqrt

from engine.bank.rows import Int, Rows

LEAST = 32
"""Images below which nothing is said."""
ERRORS, SKEW = 3, 2
"""Standard errors, and images, above chance at which an agreement is more than chance. The images are for
many classes: a count that is expected to be a few, or none, is skewed."""
NEAR, DECIDED = 0.1, 0.25
"""Shares of the way from chance to full agreement: what is still near chance; how far the errors may reach,
or else there are too few images to say anything."""
_SOURCES = "raise synthesize.steps, lower synthesize.w_bn, or check teacher.mean and teacher.std"
_VARIATIONS = (
    "take another augment.prior, augment.class_condition text, a lower augment.strength, "
    "or augment.method none"
)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of images with their labels; can be added up over shards."""

    agreeing: int = 0
    """Images whose label is the teacher's top-1."""
    labels: Counter[int] = field(default_factory=Counter)
    """Images by label."""
    predictions: Counter[int] = field(default_factory=Counter)
    """Images by the teacher's top-1."""

    @classmethod
    def of(cls, labels: Int, top1: Int) -> "Agreement":
        """labels, top1: [N]."""
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
        return self.labels.total()

    @property
    def chance(self) -> float:
        """The expected share that agrees if the same predictions were dealt out at random."""
        return self._pairs / self.images**2

    @property
    def is_near_chance(self) -> bool:
        """False for too few images to tell, and for a single label, which cannot be missed."""
        images = self.images
        if images < LEAST or len(self.labels) < 2:
            return False
        share, chance, room = self.agreeing / images, self.chance, 1 - self.chance
        reach = ERRORS * self._standard_error + SKEW / images
        if reach > DECIDED * room:
            return False
        return share <= chance + reach or share < min(2 * chance, chance + NEAR * room)

    @property
    def _pairs(self) -> int:
        """Of an image's label and an image's prediction, those that are equal."""
        return sum(count * self.predictions[label] for label, count in self.labels.items())

    @property
    def _standard_error(self) -> float:
        """Of the share that agrees, over all ways to deal out the predictions (Hoeffding 1951)."""
        images, pairs = self.images, self._pairs
        both = sum(
            count * self.predictions[label] * (count + self.predictions[label])
            for label, count in self.labels.items()
        )
        variance = (pairs - both / images + pairs**2 / images**2) / (images - 1)
        return sqrt(max(variance, 0.0)) / images

    def sentence(self, what: str) -> str:
        """`what`: the images, in the plural."""
        return (
            f"the teacher agrees with the label of {self.agreeing / self.images:.1%} of {self.images:,} "
            f"{what}, and chance is {self.chance:.1%}"
        )


@dataclass(frozen=True, kw_only=True)
class Agreements:
    """Of the synthesized images and of all their variations, rejected ones too."""

    sources: Agreement = Agreement()
    variations: Agreement = Agreement()

    @classmethod
    def of(cls, rows: Rows) -> "Agreements":
        varied = rows.parents >= 0
        return cls(
            sources=Agreement.of(rows.labels[~varied], rows.teacher_top1[~varied]),
            variations=Agreement.of(rows.labels[varied], rows.teacher_top1[varied]),
        )

    def __add__(self, other: "Agreements") -> "Agreements":
        return Agreements(sources=self.sources + other.sources, variations=self.variations + other.variations)

    @property
    def warning(self) -> str | None:
        """One line if sources, or else variations, are near chance: what of, how near, and what to do."""
        if self.sources.is_near_chance:
            return f"{self.sources.sentence('synthesized images')}; {_SOURCES}"
        if self.variations.is_near_chance:
            return f"{self.variations.sentence('variations')}; {_VARIATIONS}"
        return None
