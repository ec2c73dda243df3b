"""Configurations of tiny networks for bench.random_networks."""

from typing import Any

import torch

from bench.random_networks import variation_pipeline
from bench.stages.case import Machine
from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.distributed import open_accelerator
from tests.runtime_options import torch_options

UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
}
VAE: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
}
ENCODER: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 16,
}


def pipeline(scheduler: str = "DPMSolverMultistepScheduler") -> Any:
    """Return a pipeline of 16x16 images and 4x8x8 latents."""
    return variation_pipeline(UNET, VAE, ENCODER, scheduler=scheduler)


def machine(**changes: object) -> Machine:
    """Return runtime torch in float32 on the CPU, with these `changes`."""
    config = ComputeConfig(device="cpu", precision="fp32", runtime="torch", threads=torch.get_num_threads())
    return Machine(accelerator=open_accelerator(resolve_compute(config)), options=torch_options(**changes))
