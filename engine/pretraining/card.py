"""The card of the embedded assets: what they are, what they were trained on, how good they are."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from engine.datasets.fashion_mnist import CLASS_NAMES, SPLIT_SEED, LabeledImages, load
from engine.models.classifier import Classifier
from engine.models.loading import load_classifier
from engine.models.priors import PROMPT, ClipModel, DiffusionPrior, load_clip, load_prior
from engine.recipes.load import load_recipe
from engine.stages.evaluate import accuracy

TEMPLATE = """\
---
license: apache-2.0
---
# Embedded assets: Fashion-MNIST

`python -m engine.pretrain` trains them again. Apache-2.0, as the code; Fashion-MNIST is MIT-licensed (Zalando SE).

The train split of Fashion-MNIST, padded to 32x32 and shown as RGB, is cut in two once (PCG64 permutation, seed
{split_seed}): the **private** half (30,000 images) trains the teachers and nothing else; the **public** half
(30,000) trains the priors; it stands for the web images that foundation models have seen. The test split (10,000)
is only used for measurements. The engine's loop reads neither half. A result made with these priors depends on the
public half, and must say so.

| file | network | trained on | parameters | measured on the test split |
|---|---|---|---|---|
| `teacher.safetensors` | WRN-16-2, one input channel | private | {teacher_parameters:,} | top-1 {teacher:.2%} |
| `lenet-5.safetensors` | LeNet-5, one input channel | private | {lenet_parameters:,} | top-1 {lenet:.2%} |
| `open_clip/` | open_clip CLIP: ViT and text tower | public, with class captions | {clip_parameters:,} | zero-shot top-1 {clip:.2%} |
| `image-variation/image_encoder` | CLIPVisionModelWithProjection | public, same text tower | {encoder_parameters:,} | zero-shot top-1 {encoder:.2%} |
| `image-variation/vae` | AutoencoderKL, 32x32 to 8x8x8 | public | {vae_parameters:,} | reconstruction {psnr:.1f} dB PSNR |
| `image-variation/unet` | UNet2DConditionModel, v-prediction, image and class token | public | {unet_parameters:,} | |

The weights are stored in fp16 (safetensors, {megabytes:.1f} MB in all) and computed in fp32 or bf16. No split was
used to choose a checkpoint: each network is the end, or the moving average at the end, of a fixed schedule.
That LeNet-5 is trained without random crops was chosen on the public half.
Only one choice used the test split: the length of the CLIP towers' training was set after a look at their zero-shot
accuracy.
"""


def write_card(out: Path, root: Path | None, accelerator: Accelerator) -> None:
    """Measure the assets as they load from `out` and write `out`/README.md."""
    test = load("test", root)
    teacher = _teacher("fashion-mnist", out / "teacher.safetensors")
    lenet = _teacher("lenet", out / "lenet-5.safetensors")
    clip = load_clip(f"local-dir:{(out / 'open_clip').resolve()}", None, accelerator.device)
    prior = load_prior(str((out / "image-variation").resolve()), accelerator.device)
    text = TEMPLATE.format(
        split_seed=SPLIT_SEED,
        teacher=accuracy(teacher, test.images, test.labels, accelerator),
        lenet=accuracy(lenet, test.images, test.labels, accelerator),
        clip=_zero_shot(clip, clip.embed_images, test),
        encoder=_zero_shot(clip, lambda images: _encode(prior, images), test),
        psnr=_psnr(prior, test.images),
        teacher_parameters=_count(teacher),
        lenet_parameters=_count(lenet),
        clip_parameters=_count(clip.network),
        encoder_parameters=_count(prior.image_encoder),
        vae_parameters=_count(prior.vae),
        unet_parameters=_count(prior.unet),
        megabytes=sum(f.stat().st_size for f in out.rglob("*.safetensors")) / 1e6,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _teacher(recipe: str, weights: Path) -> Classifier:
    return load_classifier(
        load_recipe(recipe, {"teacher.weights": str(weights.resolve())}).teacher, "teacher"
    )


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _encode(prior: DiffusionPrior, images: Tensor) -> Tensor:
    mean = torch.tensor(prior.encoder_mean).view(1, 3, 1, 1)
    std = torch.tensor(prior.encoder_std).view(1, 3, 1, 1)
    pixels = ((images.float() / 255 - mean) / std).to(prior.image_encoder.device)
    return F.normalize(prior.image_encoder(pixel_values=pixels).image_embeds, dim=1)


@torch.no_grad()
def _zero_shot(clip: ClipModel, embed: Callable[[Tensor], Tensor], test: LabeledImages) -> float:
    captions = clip.embed_texts([PROMPT.format(name) for name in CLASS_NAMES])
    predicted = torch.cat([(embed(chunk) @ captions.T).argmax(1).cpu() for chunk in test.images.split(500)])
    return (predicted == test.labels).double().mean().item()


@torch.no_grad()
def _psnr(prior: DiffusionPrior, images: Tensor) -> float:
    errors = []
    for chunk in images.split(500):
        pixels = chunk.to(prior.vae.device).float() / 127.5 - 1
        decoded = prior.vae.decode(prior.vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append(F.mse_loss(decoded, pixels).double().cpu())
    return float(10 * torch.log10(4 / torch.stack(errors).mean()))
