"""The baselines of `stages`: each stage's work as those who published it do it, eager in float32.

`steps` and `hooks`: the research code of DAFL, CMI, Fast-Datafree and DDA, in contiguous memory; BatchNorm
statistics ride on forward hooks that stay attached, in the distillation step too; nothing is frozen, so each
step also computes the gradients of weights that no one uses; one `.item()` a step. Written anew from the
published descriptions. `variations` and `similarity`: diffusers and open_clip, called as their READMEs do.
"""
