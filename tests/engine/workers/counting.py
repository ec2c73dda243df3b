"""Counts the GPUs when it is imported, which initialises CUDA."""

import torch

torch._C._cuda_getDeviceCount()
