"""The baselines of `stages` and `e2e`: single steps and whole loops as published, eager in float32.

`steps` and `hooks` follow the research code of DAFL, CMI, Fast-Datafree and DDA; `fast_dfkd` and `csd` are
whole loops, with the settings of the authors' scripts. Memory is contiguous. BatchNorm statistics come from
forward hooks that stay attached, in the distillation step too. Nothing is frozen, so each step also computes
gradients of weights that nobody uses. Each step calls `.item()` once. The code is our own, written from the
published descriptions. `libraries` calls diffusers and open_clip as their READMEs do.
"""
