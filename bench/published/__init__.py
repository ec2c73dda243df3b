"""The baselines of `stages`: the work of each stage as published, eager in float32.

`steps` and `hooks` follow the research code of DAFL, CMI, Fast-Datafree and DDA. Memory is contiguous.
BatchNorm statistics come from forward hooks that stay attached, in the distillation step too. Nothing is
frozen, so each step also computes gradients of weights that nobody uses. Each step calls `.item()` once. The
code is our own, written from the published descriptions. `libraries` calls diffusers and open_clip as their
READMEs do.
"""
