"""Load the networks of a recipe one at a time, because together they may not fit into memory."""

from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from torch import Tensor

from engine.config.classifier import ClassifierConfig
from engine.config.compute import Runtime
from engine.config.recipe import Recipe
from engine.errors import UserError
from engine.models.latent_diffusion import LatentDiffusion
from engine.models.loading import load_classifier
from engine.models.pipeline_folder import TEXT_TO_IMAGE, PipelineFolder
from engine.models.priors import PROMPT, load_clip, load_prior
from engine.models.text_to_image import embed_prompts, load_text_to_image
from engine.networks import spec
from engine.paths import resolve
from export.spec import NetworkSpec

CPU = "cpu"
"""Networks are exported from the CPU, whichever device the engine will run on."""


class Networks:
    """The networks of a recipe by name. Nothing is kept: each call loads the weights again."""

    def __init__(self, recipe: Recipe, runtime: Runtime, student_weights: str | None) -> None:
        self._recipe, self._runtime, self._student_weights = recipe, runtime, student_weights

    def load(self, name: str) -> NetworkSpec:
        """Return the spec of a network with freshly loaded weights.

        Raises UserError if the recipe has no such network, or its files are missing or unreadable.
        """
        recipe = self._recipe
        if name in ("teacher", "student"):
            taps = recipe.distill.teacher_taps if name == "teacher" else ()
            return spec(name, recipe, load_classifier(self.config(name), name, taps=taps), self._runtime)
        if name == "clip":
            if not recipe.filter.model:
                raise UserError(
                    "--network clip: filter.model is empty; set it, or leave clip out of --network"
                )
            clip = load_clip(recipe.filter.model, recipe.filter.pretrained, CPU)
            return spec(name, recipe, clip, self._runtime)
        part = {"vae_encoder": "vae", "vae_decoder": "vae"}.get(name, name)
        return spec(name, recipe, self.load_prior(part), self._runtime)

    def config(self, name: str) -> ClassifierConfig:
        """Return the settings of the teacher or student, with the weights to export."""
        if name == "teacher":
            return self._recipe.teacher
        if self._student_weights is None:
            raise UserError("--network student needs --run DIR, the folder of a finished run")
        return replace(self._recipe.student, weights=self._student_weights)

    def weights_file(self, name: str) -> Path:
        """Return the file of the teacher's or student's weights; the network must have been loaded."""
        return resolve(self.config(name).weights or "", f"{name}.weights")

    def load_prior(self, *parts: str) -> LatentDiffusion:
        """Return the diffusion prior with the named networks. Raises UserError as `load` does."""
        pipeline = self._pipeline()
        if pipeline.class_name in TEXT_TO_IMAGE:
            return load_text_to_image(pipeline, CPU, parts=parts)
        return load_prior(self._recipe.augment.prior, CPU, parts=parts)

    def embed_prompts(self, count: int) -> tuple[Tensor, Tensor | None] | None:
        """Return a text-conditioned prior's embeddings of `count` prompts, None for other priors."""
        pipeline = self._pipeline()
        if pipeline.class_name not in TEXT_TO_IMAGE:
            return None
        names = islice(cycle(self._recipe.names), count)
        return embed_prompts(pipeline, [PROMPT.format(name) for name in names])

    def _pipeline(self) -> PipelineFolder:
        if not self._recipe.augment.prior:
            raise UserError("augment.prior is empty; set it, or limit --network to teacher and clip")
        return PipelineFolder.open(self._recipe.augment.prior)
