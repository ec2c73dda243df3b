"""Data-free distillation: synthesize, augment, filter, distill."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())
