"""What a worker is told when it starts."""

import logging
from dataclasses import dataclass

from engine.bank.manifest import Header
from engine.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Job:
    """The same for all workers of a bank; it can be sent between processes and loads no torch."""

    recipe: Recipe
    """Resolved: the same settings on every machine."""
    url: str
    """The bank's folder or URL; local folders must be shared by all machines."""
    header: Header
    """The bank's."""
    log_level: int = logging.INFO
    """Lowest level of the records that a worker in another process sends to the coordinator."""

    @property
    def depth(self) -> int:
        """Shards that a worker has under way at once: one for each of three lanes, and one that waits."""
        several_lanes = self.recipe.compute.overlap and self.recipe.augment.method != "none"
        return 4 if several_lanes else 1
