"""Ask the teacher once about views of a shard's images, and store what it says."""

import logging

import numpy as np
import torch

from engine.bank.codecs import Images
from engine.bank.manifest import shard_name
from engine.bank.reader import BankReader
from engine.bank.rows import Int
from engine.bank.views import TeacherOutputs, ViewsError, ViewsFile, ViewsOwner, pack
from engine.config.recipe import Recipe
from engine.generation.provenance import teacher_sha256
from engine.models.loading import require_feature
from engine.networks import OpenPair
from engine.progress import Progress
from engine.runtime.micro_batch import MicroBatch
from engine.stages.views import teacher_outputs

logger = logging.getLogger(__name__)
STAGE = "views"
"""Name in progress and timings."""


class ViewStore:
    """The teacher's outputs on the views that a recipe stores: finds or makes those of a shard."""

    def __init__(self, recipe: Recipe, opened: OpenPair, device: torch.device, progress: Progress) -> None:
        views = recipe.stored_views
        assert views is not None
        self.config, self._teacher = views, opened.teacher_forward
        self._teacher_sha256 = teacher_sha256(recipe)
        self._device, self._progress = device, progress
        self._micro_batch = MicroBatch("filter", recipe.filter.images_at_once)
        has_feature = recipe.distill.w_feature > 0
        self._pooled = require_feature(opened.teacher, "teacher") if has_feature else None
        self._reasons = set[str]()  # why files could not be used
        self._no_outputs = np.zeros((0, views.count, len(recipe.names)), np.float16)

    def of_shard(self, bank: BankReader, number: int) -> ViewsFile:
        """Return the stored outputs of a shard; make them if they are missing, damaged or do not fit.

        Raises:
            UserError: if they cannot be written to the bank.
            NonFiniteError: if the teacher's logits are NaN or Inf.
        """
        found = self._found(bank, number)
        if found is not None:
            return found
        spans = bank.spans(number)
        images = bank.images(number, np.arange(len(spans)))
        bank.write_views(number, self.packed(bank.tar_sha256(number), images, spans.keys))
        made = bank.views(number)
        assert made is not None
        return made

    def packed(self, tar: str, images: Images, keys: Int) -> bytes:
        """Return the contents of the file of views of a shard.

        Args:
            tar: SHA-256 of the shard's tar.
            images: its kept images, uint8 [N, H, W, 3], in ascending order of `keys` [N].
        """
        outputs, total = TeacherOutputs(self._no_outputs, None), len(images) * self.config.count
        if total:
            with self._progress.stage(STAGE, total=total, unit="images") as stage:
                outputs = teacher_outputs(
                    images,
                    keys,
                    self.config,
                    self._teacher,
                    self._micro_batch,
                    self._device,
                    pooled=self._pooled,
                    advance=stage.advance,
                )
        return pack(ViewsOwner(tar=tar, teacher=self._teacher_sha256, views=self.config), outputs)

    def _found(self, bank: BankReader, number: int) -> ViewsFile | None:
        """Return the stored outputs of a shard, or None; warn once of each reason why some cannot be used."""
        try:
            found = bank.views(number)
            if found is None:
                return None
            if found.owner.teacher != self._teacher_sha256:
                raise ViewsError("is of another teacher")
            if not found.owner.views.fits(self.config):
                raise ViewsError("is of other settings")
            if self._pooled and found.outputs.logits.size and found.outputs.pooled is None:
                raise ViewsError("has no features")
        except ViewsError as error:
            reason = str(error)
            level = logging.DEBUG if reason in self._reasons else logging.WARNING
            self._reasons.add(reason)
            message = f"the file of views of shard {shard_name(number)} {reason}; making it again"
            logger.log(level, message)
            return None
        return found
