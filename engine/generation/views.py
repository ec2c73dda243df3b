"""Ask the teacher once about views of a shard's images, and store what it says."""

import logging
from dataclasses import replace

import numpy as np
import torch

from engine.bank.codecs import Images, as_stored
from engine.bank.manifest import shard_name
from engine.bank.reader import BankReader
from engine.bank.rows import Int
from engine.bank.views import TeacherOutputs, ViewsError, ViewsFile, ViewsOwner, pack, parse
from engine.config.recipe import Recipe
from engine.config.storage import stored_channels
from engine.config.views import StoredViews
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
    """The teacher's outputs on the views that a recipe stores: finds or makes those of a shard.

    The views of a shard have the seed of the generation that made it, so that all students share them. The
    teacher may run in one thread at a time only.
    """

    def __init__(self, recipe: Recipe, opened: OpenPair, device: torch.device, progress: Progress) -> None:
        views = recipe.stored_views
        assert views is not None
        self.config, self._teacher = views, opened.teacher_forward
        self._teacher_sha256 = teacher_sha256(recipe)
        self._device, self._progress = device, progress
        self._micro_batch = MicroBatch("filter", recipe.filter.images_at_once)
        self._storage, self._is_grey = recipe.storage, recipe.teacher.is_grey
        has_feature = recipe.distill.w_feature > 0
        self._pooled = require_feature(opened.teacher, "teacher") if has_feature else None
        self._classes = len(recipe.names)
        self._reasons = set[str]()  # why files could not be used

    def of_shard(self, bank: BankReader, number: int) -> ViewsFile:
        """Return the stored outputs of a shard; make them if they are missing, damaged or do not fit.

        Raises:
            UserError: if they cannot be written to the bank.
            NonFiniteError: if the teacher's logits are NaN or Inf.
        """
        wanted = replace(self.config, seed=bank.view_seed(number))
        found = self._found(bank, number, wanted)
        if found is not None:
            return found
        keys = bank.spans(number).keys
        outputs = self._outputs(bank.images(number, np.arange(len(keys))), keys, wanted)
        data = self.packed(bank.tar_sha256(number), outputs, wanted)
        bank.write_views(number, data)
        return self._found(bank, number, wanted) or parse(np.frombuffer(data, np.uint8))

    def of_new_images(self, images: Images, keys: Int) -> TeacherOutputs:
        """Return the outputs on the views of images of a shard that is being made.

        Args:
            images: the kept images, uint8 [N, H, W, 3], before they are encoded.
            keys: int64 [N], ascending.
        """
        storage = self._storage
        channels = stored_channels(storage.codec, is_grey=self._is_grey)
        return self._outputs(as_stored(images, storage.codec, storage.quality, channels), keys, self.config)

    def packed(self, tar: str, outputs: TeacherOutputs, views: StoredViews | None = None) -> bytes:
        """Return the contents of a shard's file of views; `tar` is the SHA-256 of its tar."""
        return pack(ViewsOwner(tar=tar, teacher=self._teacher_sha256, views=views or self.config), outputs)

    def _outputs(self, images: Images, keys: Int, views: StoredViews) -> TeacherOutputs:
        if not len(images):
            return TeacherOutputs(np.zeros((0, views.count, self._classes), np.float16), None)
        with self._progress.stage(STAGE, total=len(images) * views.count, unit="images") as stage:
            return teacher_outputs(
                images,
                keys,
                views,
                self._teacher,
                self._micro_batch,
                self._device,
                pooled=self._pooled,
                advance=stage.advance,
            )

    def _found(self, bank: BankReader, number: int, wanted: StoredViews) -> ViewsFile | None:
        """Return the stored outputs of a shard, or None; warn once for each reason not to use some."""
        try:
            found = bank.views(number)
            if found is None:
                return None
            if found.owner.teacher != self._teacher_sha256:
                raise ViewsError("belongs to another teacher")
            if not found.owner.views.include(wanted):
                raise ViewsError("was made with other settings")
            if self._pooled and found.outputs.logits.size and found.outputs.pooled is None:
                raise ViewsError("has no features")
        except ViewsError as error:
            reason = str(error)
            level = logging.DEBUG if reason in self._reasons else logging.WARNING
            self._reasons.add(reason)
            logger.log(level, f"the file of views of shard {shard_name(number)} {reason}; making it again")
            return None
        return found
