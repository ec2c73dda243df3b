"""Small random priors, written in the folder formats of diffusers and open_clip."""

import json
from pathlib import Path
from typing import Any

import torch

IMAGE_SIZE = 16
EMBED_DIM = 16
CLIP_SIZE = 24
CLASS_NAMES = ("bag", "coat", "ankle boot")
WORDS = ("[PAD]", "[UNK]", "a", "photo", "of", ".", "bag", "coat", "ankle", "boot", "[EOS]")


def tiny_vae() -> Any:
    """Return an AutoencoderKL of IMAGE_SIZE, whose latents have half the side, from torch's generator."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
    )


def write_prior(folder: Path, *, dtype: torch.dtype = torch.float32, embed_dim: int = EMBED_DIM) -> Path:
    """Write a StableDiffusionImageVariationPipeline of 16x16 images and 4x8x8 latents."""
    from diffusers import (
        DDIMScheduler,
        StableDiffusionImageVariationPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = tiny_vae()
        unet = UNet2DConditionModel(
            sample_size=IMAGE_SIZE // 2,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=8,
            norm_num_groups=8,
            cross_attention_dim=embed_dim,
        )
        encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                image_size=IMAGE_SIZE,
                patch_size=8,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                projection_dim=embed_dim,
            )
        )
        # Random projections nearly hide the conditioning; larger ones make it visible in 8 bits.
        torch.nn.init.normal_(encoder.visual_projection.weight, std=0.5)
        for name, weight in unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_k" in name:
                torch.nn.init.normal_(weight, std=0.5)
    pipeline = StableDiffusionImageVariationPipeline(
        vae=vae,
        unet=unet,
        image_encoder=encoder,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        ),
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=dtype).save_pretrained(folder)
    return folder


def write_clip(folder: Path, *, embed_dim: int = EMBED_DIM) -> Path:
    """Write an open_clip folder: 24x24 images, a vocabulary of eleven words."""
    import open_clip
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    eos = len(WORDS) - 1
    config = {
        "embed_dim": embed_dim,
        "vision_cfg": {"image_size": CLIP_SIZE, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": len(WORDS),
            "width": 16,
            "heads": 2,
            "layers": 1,
            "pool_type": "argmax",
            "hf_tokenizer_name": "here",
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = open_clip.CLIP(**json.loads(json.dumps(config)))
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", eos)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]"
    ).save_pretrained(folder)
    return folder
