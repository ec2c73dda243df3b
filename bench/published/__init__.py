"""The steps as the research code of DAFL, CMI, Fast-Datafree and DDA takes them: the baselines of `stages`.

Eager float32 in contiguous memory; BatchNorm statistics ride on forward hooks that stay attached, in the
distillation step too; nothing is frozen, so each step also computes the gradients of weights that no one
uses; one `.item()` a step. Written anew from the published descriptions.
"""
