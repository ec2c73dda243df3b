"""The two tiny image towers and their text tower, trained together on the public half.

One open_clip model (the filter) and one CLIPVisionModelWithProjection (the condition of the diffusion model)
share a text tower, so their embeddings lie in one space, as they do in the real pair. The loss pulls each
image to its class caption, which makes the class visible, and to the other tower's embedding of another view
of the image, which keeps images of one class apart. Training runs in float32: layers this small gain nothing
from bf16.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from engine.atomic import replacing
from engine.datasets.fashion_mnist import CLASS_NAMES, LabeledImages
from engine.models.priors import PROMPT
from engine.pretraining.fit import Fit, fit
from engine.pretraining.views import strong_view
from engine.seeding import generator

EMBED_DIM = 64
IMAGE_MEAN, IMAGE_STD = [0.219] * 3, [0.332] * 3
PROMPTS = (PROMPT, "a {}.", "a picture of one {}.")
OPEN_CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 128,
            "layers": 3,
            "head_width": 32,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {
        "mean": IMAGE_MEAN,
        "std": IMAGE_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "size": 32,
    },
}
VISION_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": EMBED_DIM,
}


class TowerPair(nn.Module):
    """Both image towers and the text tower; all embeddings are unit vectors, float32 [*, EMBED_DIM]."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.open_clip = open_clip.CLIP(**OPEN_CLIP_CONFIG["model_cfg"])
        self.vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION_CONFIG))
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1), persistent=False)

    def embed_open_clip(self, images: Tensor) -> Tensor:
        return self.open_clip.encode_image((images - self.mean) / self.std, normalize=True).float()

    def embed_vision(self, images: Tensor) -> Tensor:
        embeds = self.vision(pixel_values=(images - self.mean) / self.std).image_embeds
        return F.normalize(embeds.float(), dim=-1)

    def embed_captions(self, prompt: str) -> Tensor:
        tokens = open_clip.tokenize([prompt.format(name) for name in CLASS_NAMES], context_length=16)
        return self.open_clip.encode_text(tokens.to(self.mean.device), normalize=True).float()


def pair_loss(pair: TowerPair, views: tuple[Tensor, Tensor], labels: Tensor, prompt: str) -> Tensor:
    """Return CE of both towers over the captions + symmetric InfoNCE of the towers (Radford et al. 2021)."""
    scale = pair.open_clip.logit_scale.exp().clamp(max=100)
    captions = pair.embed_captions(prompt)
    ours, theirs = pair.embed_open_clip(views[0]), pair.embed_vision(views[1])
    by_class = F.cross_entropy(scale * ours @ captions.T, labels)
    by_class = by_class + F.cross_entropy(scale * theirs @ captions.T, labels)
    same = torch.arange(len(labels), device=labels.device)
    logits = 10 * ours @ theirs.T
    by_image = F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)
    return by_class + 0.25 * by_image


def train_clip(
    data: LabeledImages,
    accelerator: Accelerator,
    checkpoint: Path,
    *,
    cycles: int = 2,
    epochs: int = 12,
    seed: int = 0,
) -> TowerPair:
    """Train for `cycles` one-cycle schedules of `epochs` each, one after the other."""
    batch_size = 250
    torch.manual_seed(seed)
    pair = TowerPair().to(accelerator.device)
    decay = [p for p in pair.parameters() if p.ndim > 1]
    rest = [p for p in pair.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    cycle = 0

    def losses(epoch: int) -> Iterator[Tensor]:
        rng = generator(seed, "clip", cycle, epoch)
        for index in torch.randperm(len(data.labels), generator=rng).split(batch_size):
            images, labels = data.images[index], data.labels[index].to(accelerator.device)
            views = (
                strong_view(images, rng).to(accelerator.device),
                strong_view(images, rng).to(accelerator.device),
            )
            prompt = PROMPTS[int(torch.randint(len(PROMPTS), (), generator=rng))]
            yield pair_loss(pair, views, labels, prompt)

    config = Fit(epochs=epochs, steps_per_epoch=-(-len(data.labels) // batch_size), max_lr=1e-3, seed=seed)
    for cycle in range(cycles):  # noqa: B007 - `losses` reads it
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
        fit("clip", pair, optimizer, losses, config, checkpoint.with_stem(f"{checkpoint.stem}-{cycle}"))
    return pair.eval()


def save_open_clip(pair: TowerPair, folder: Path) -> None:
    """Write an open_clip model folder that `local-dir:` can load; weights in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps(OPEN_CLIP_CONFIG, indent=2) + "\n", encoding="utf-8"
    )
    state = {
        k: v.half().contiguous() for k, v in pair.open_clip.state_dict().items() if v.is_floating_point()
    }
    with replacing(folder / "open_clip_model.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


def save_vision_tower(pair: TowerPair, folder: Path) -> None:
    """Write the fp16 `image_encoder/` and `feature_extractor/` of an image-variation pipeline folder."""
    pair.vision.half().save_pretrained(folder / "image_encoder", safe_serialization=True)
    pair.vision.float()
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=32, image_mean=IMAGE_MEAN, image_std=IMAGE_STD
    )
    processor.save_pretrained(folder / "feature_extractor")
