"""Optimize a generator and its input until the teacher sees the wanted classes in a batch of images."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.config.views import Views
from engine.errors import UserError
from engine.runtime.micro_batch import is_out_of_memory
from engine.runtime.torch import capture_cuda_graph
from kernels.crop_flip import crop_flip_nchw, draw_crops

Objective = Callable[[Tensor, Tensor], Tensor]
"""Maps augmented images, float32 [B, channels, H, W], and labels, int64 [B], to the scalar loss."""

EAGER_STEPS = 3
"""Steps before the CUDA graph is captured, in which memory is allocated and cuDNN chooses its kernels."""


class Inversion:
    """Adam over the weights of `network` and its input z; keeps the images with the lowest loss.

    One object serves many batches: `begin` starts the next. A step has fixed shapes and never waits for the
    device. With `cuda_graph`, on a GPU, EAGER_STEPS steps run eagerly; then the whole step, with its
    optimizer, is captured as a CUDA graph and replayed: the same kernels in the same order.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        *,
        batch_size: int,
        latent_dim: int,
        lr: float,
        accelerator: Accelerator,
        cuda_graph: bool,
        views: Views | None = None,
    ) -> None:
        self.views = views or Views()
        self.network, self.objective, self.accelerator = network, objective, accelerator
        device = accelerator.device
        on_gpu = device.type == "cuda"
        self.z = torch.zeros(batch_size, latent_dim, device=device, requires_grad=True)
        self.labels = torch.zeros(batch_size, dtype=torch.long, device=device)
        offsets = torch.zeros(2, batch_size, dtype=torch.long, device=device)
        self.crops = offsets[0], offsets[1], torch.zeros(batch_size, dtype=torch.bool, device=device)
        self.optimizer = torch.optim.Adam(
            [*network.parameters(), self.z], lr, betas=(0.5, 0.999), capturable=on_gpu, fused=on_gpu
        )
        self.best_loss = torch.full((), float("inf"), device=device)
        self.best_images: Tensor | None = None
        self.draw = torch.Generator()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.side_stream = torch.cuda.Stream() if cuda_graph and on_gpu else None
        self.eager_steps_left = EAGER_STEPS

    @torch.no_grad()
    def begin(self, z: Tensor, labels: Tensor, draw: torch.Generator) -> None:
        """Start a batch and reset Adam. The caller sets the weights of the network, in place.

        Args:
            z: float32 [B, latent_dim], where the optimization starts.
            labels: int64 [B].
            draw: generator on the CPU for crops and flips.
        """
        self.z.copy_(z)
        self.labels.copy_(labels)
        self.draw = draw
        self.best_loss.fill_(float("inf"))
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def step(self) -> None:
        """Draw crops and flips on the CPU, and update the weights and z once."""
        pad, flip = self.views.crop_padding, self.views.flip
        crops = draw_crops(len(self.z), self.draw, pad=pad, flip=flip)
        for static, drawn in zip(self.crops, crops, strict=True):
            static.copy_(drawn, non_blocking=True)
        if self.graph is not None:
            self.graph.replay()
        elif self.side_stream is None:
            self.update()
        elif self.eager_steps_left > 0:
            self.eager_steps_left -= 1
            self._update_on_side_stream(self.side_stream)
        else:
            self._capture()

    def update(self) -> None:
        """Update the weights and z once, eagerly, with the current crops."""
        with self.accelerator.autocast():
            images = self.network(self.z)
        images = images.float()
        loss = self.objective(crop_flip_nchw(images, *self.crops, pad=self.views.crop_padding), self.labels)
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

    def _update_on_side_stream(self, side: torch.cuda.Stream) -> None:
        """Update on a side stream, which PyTorch requires of the steps before a capture."""
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.update()
        torch.cuda.current_stream().wait_stream(side)

    def _capture(self) -> None:
        """Capture a step, which does not run it, and replay it."""
        graph = torch.cuda.CUDAGraph()
        try:
            with capture_cuda_graph(graph):
                self.update()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f"compute.cuda_graphs is true, but the step of synthesize cannot be captured ({reason}); "
                "set --compute.cuda_graphs false"
            ) from error
        self.graph = graph
        graph.replay()
