"""Fashion-MNIST as 32x32 RGB images, its train split cut into a private and a public half."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.datasets.fetch import fashion_mnist_root, read_verified

Split = Literal["private", "public", "test"]
SPLIT_SEED = 20241028
CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


class LabeledImages(NamedTuple):
    images: Tensor  # uint8 [N, 3, 32, 32]
    labels: Tensor  # int64 [N]


def load(split: Split, root: Path | None = None) -> LabeledImages:
    """Load a split: `private` (30k, trains the teacher), `public` (30k, trains the priors) or `test` (10k).

    `root` is the folder of the four idx.gz files; None tries the usual places.
    Raises FileNotFoundError if the files are missing, UserError if one is not as published.
    """
    image_file, label_file = files(split, root)
    grey, labels = _read_idx(image_file), _read_idx(label_file).long()
    images = F.pad(grey[:, None], (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    if split == "test":
        return LabeledImages(images.contiguous(), labels)
    order = torch.from_numpy(np.random.Generator(np.random.PCG64(SPLIT_SEED)).permutation(len(labels)))
    half = len(labels) // 2
    chosen = order[:half] if split == "private" else order[half:]
    return LabeledImages(images[chosen], labels[chosen])


def files(split: Split, root: Path | None = None) -> tuple[Path, Path]:
    """Return the image file and the label file of `split`. Raises FileNotFoundError if they are missing."""
    folder, prefix = fashion_mnist_root(root), "t10k" if split == "test" else "train"
    return folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"


def _read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes (magic 0x0000_08_dd, then dd big-endian sizes)."""
    data = read_verified(path)
    num_dims = data[3]
    shape = np.frombuffer(data, ">u4", num_dims, offset=4).astype(int)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims).reshape(shape)
    return torch.from_numpy(values.copy())
