"""Test the kernels on two threads."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)
