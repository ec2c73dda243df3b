"""Data-free distillation: synthesize, augment, filter, distill."""
