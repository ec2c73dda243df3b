"""The optimization of one batch of images: its tensors, its optimizer, and a step of it."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.transforms import crop_flip, draw_crops

Objective = Callable[[Tensor], Tensor]
"""augmented images, float32 [B, channels, H, W] -> the scalar loss."""

EAGER_STEPS = 3


class Inversion:
    """Adam over the weights of `network` and z, together, for the images with the lowest loss.

    A step has fixed shapes and never waits for the device. With `captured`, on a GPU, the first EAGER_STEPS
    run as they are, then the whole step, optimizer included, is recorded as a CUDA graph and replayed: the
    same kernels in the same order, so the same numbers.
    """

    def __init__(
        self,
        network: nn.Module,
        z: Tensor,
        objective: Objective,
        *,
        lr: float,
        draw: torch.Generator,
        accelerator: Accelerator,
        captured: bool,
    ) -> None:
        self.network, self.objective, self.draw, self.accelerator = network, objective, draw, accelerator
        device = accelerator.device
        self.z = z.to(device, copy=True).requires_grad_()
        captured = captured and device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            [*network.parameters(), self.z],
            lr,
            betas=(0.5, 0.999),
            capturable=captured,
            fused=device.type == "cuda",
        )
        offsets = torch.zeros(2, len(z), dtype=torch.long, device=device)
        self.crops = offsets[0], offsets[1], torch.zeros(len(z), dtype=torch.bool, device=device)
        self.best_loss = torch.full((), float("inf"), device=device)
        self.best_images: Tensor | None = None
        self.eager_steps_left = EAGER_STEPS if captured else None
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self) -> None:
        """One update of the weights and z; crops and flips are drawn from `draw` on the CPU."""
        for static, drawn in zip(self.crops, draw_crops(len(self.z), self.draw), strict=True):
            static.copy_(drawn, non_blocking=True)
        if self.graph is not None:
            self.graph.replay()
        elif self.eager_steps_left == 0:
            self._capture()
        elif self.eager_steps_left is None:
            self.update()
        else:
            self.eager_steps_left -= 1
            self._update_on_side_stream()

    def update(self) -> None:
        """One step with the crops that are set."""
        with self.accelerator.autocast():
            images = self.network(self.z)
        images = images.float()
        loss = self.objective(crop_flip(images, *self.crops))
        self.optimizer.zero_grad()
        loss.backward()
        self._keep_best(images.detach(), loss.detach())
        self.optimizer.step()

    def _keep_best(self, images: Tensor, loss: Tensor) -> None:
        if self.best_images is None:
            self.best_images = images.clone()
        better = loss < self.best_loss
        self.best_loss.copy_(torch.where(better, loss, self.best_loss))
        self.best_images.copy_(torch.where(better, images, self.best_images))

    def _update_on_side_stream(self) -> None:
        """As capturing asks of the steps before it: allocations and cuDNN's choices are then settled."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.update()
        torch.cuda.current_stream().wait_stream(side)

    def _capture(self) -> None:
        """Records a step, which does not run it, and then runs it."""
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.update()
        self.graph = graph
        graph.replay()
