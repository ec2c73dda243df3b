"""What the engine sees in a teacher, which student it proposes, and about what a run will cost."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from engine import networks
from engine.config.recipe import Recipe
from engine.distributed import open_accelerator
from engine.inspection.timing import PerImage, per_image
from engine.models.classifier import Classifier
from engine.models.inverting import StatisticsChoice, choose_statistics
from engine.models.proposal import cost
from engine.models.reading import Reading
from engine.networks import LoadedPair
from engine.runtime.base import RuntimeOptions, runtime_options
from engine.runtime.open import measure_parity
from export.errors import ExportError

WORDS = {
    "patch_similarity": "no BatchNorm; the patch similarities of {} attention layers instead (PSAQ-ViT)",
    "image": "no BatchNorm; total variation and L2 norm of the image instead (DeepInversion)",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that `engine.inspect` reports."""

    recipe: Recipe
    """With the teacher's settings read, the student proposed, and no loss that lacks its feature map."""
    origins: Mapping[str, str]
    """Where each setting of the teacher was read."""
    is_size_assumed: bool
    """As in `Reading`."""
    parameters: tuple[int, int]
    """Of the teacher and the student."""
    multiplications: tuple[int, int]
    """Of a forward pass over one image, teacher and student."""
    statistics: str
    feature: str | None
    """Path, layout and shape of the teacher's feature map; None without one."""
    precisions: Mapping[str, str]
    """Parity with float32, or the reason why there is none, by runtime and precision."""
    per_image: PerImage

    @property
    def seconds(self) -> dict[str, float]:
        """About how long each stage takes with the counts of the recipe."""
        schedule, synthesis = self.recipe.schedule, self.recipe.synthesize
        steps = synthesis.first_steps + schedule.total_batches * synthesis.chosen.steps
        return {
            "synthesize": steps * synthesis.batch_size * self.per_image.synthesis,
            "distill": schedule.total_kd_steps * self.recipe.distill.batch_size * self.per_image.training,
        }


def find_facts(recipe: Recipe, reading: Reading, *, parity: bool = False) -> Facts:
    """Load teacher and student of a resolved recipe, and look at them.

    `parity` also opens the teacher in the recipe's runtime, which may have to be built first.

    Raises UserError as `engine.networks.load_pair` does.
    """
    accelerator = open_accelerator(recipe.compute)
    pair = networks.load_pair(recipe, accelerator.device)
    recipe, teacher = _without_missing_maps(recipe, pair), pair.teacher
    choice = choose_statistics(teacher, recipe.synthesize.statistics, recipe.teacher.size)
    return Facts(
        recipe=recipe,
        origins=reading.origins,
        is_size_assumed=reading.is_size_assumed,
        parameters=(_parameters(teacher), _parameters(pair.student)),
        multiplications=(cost(recipe.teacher), cost(recipe.student)),
        statistics=_statistics(teacher, choice),
        feature=_feature(teacher, recipe),
        precisions=_precisions(recipe, teacher, accelerator.device, parity=parity),
        per_image=per_image(pair, recipe, choice),
    )


def _without_missing_maps(recipe: Recipe, pair: LoadedPair) -> Recipe:
    """Return the recipe without the losses that need a feature map, if teacher or student has none."""
    if pair.teacher.feature_path is None or pair.student.feature_path is None:
        recipe = replace(recipe, distill=replace(recipe.distill, w_feature=0.0, taps=None))
    if pair.student.feature_path is None and recipe.synthesize.chosen.adversary == "selfsup":
        recipe = replace(recipe, synthesize=replace(recipe.synthesize, adversary="kl", w_adv=1.0))
    return recipe


def _parameters(classifier: Classifier) -> int:
    return sum(weight.numel() for weight in classifier.parameters())


def _statistics(teacher: Classifier, choice: StatisticsChoice) -> str:
    if choice.kind != "batch_norm":
        return WORDS[choice.kind].format(len(choice.attention))
    kinds = Counter(type(teacher.get_submodule(path)).__name__ for path in choice.norms)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _feature(teacher: Classifier, recipe: Recipe) -> str | None:
    if teacher.feature_path is None:
        return None
    images = torch.zeros(1, 3, *recipe.teacher.size, device=teacher.mean.device)
    with torch.no_grad():
        _, (feature,) = teacher.with_features(images, [teacher.feature_path])
    layout = teacher.feature_layout
    stored = f", stored as {layout.order}" if layout is not None and layout.order != "nchw" else ""
    return f"{teacher.feature_path.removeprefix('network.')}, {list(feature.shape[1:])}{stored}"


def _precisions(recipe: Recipe, teacher: Classifier, device: torch.device, *, parity: bool) -> dict[str, str]:
    """Return the parity of torch and, with `parity`, of the recipe's runtime, as a run would use them."""
    options = runtime_options(recipe.compute, recipe.tensorrt, device)
    in_torch = replace(options, runtime="torch", precision=recipe.compute.torch_precision)
    found = {f"torch {in_torch.precision}": _parity(recipe, teacher, in_torch)}
    if options.runtime != "torch":
        name = f"{options.runtime} {options.precision}"
        found[name] = _parity(recipe, teacher, options) if parity else "not measured; --parity measures it"
    return found


def _parity(recipe: Recipe, teacher: Classifier, options: RuntimeOptions) -> str:
    spec = networks.spec("teacher", recipe, teacher, options.runtime)
    try:
        result = measure_parity(spec, options)
    except ExportError as error:
        return f"cannot be used: {error}"
    return f"{result}, {'passes' if result.passes else 'fails: a run uses a safer precision'}"
