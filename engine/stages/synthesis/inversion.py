"""Optimize a generator and its input until the teacher sees the wanted classes in a batch of images."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from engine.config.views import Views
from engine.errors import UserError
from engine.runtime.micro_batch import is_out_of_memory
from engine.runtime.torch import capture_cuda_graph
from kernels.crop_flip import crop_flip_nchw, draw_crops

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps images, float32 [B, channels, H, W], a random view of each, in a coarse step of half the size, and
labels, int64 [B], to the scalar loss."""

EAGER_STEPS = 3
"""Steps before the CUDA graph is captured, in which memory is allocated and cuDNN chooses its kernels."""


class Inversion:
    """Adam over the weights of `network` and its input z; keeps the images with the lowest loss.

    `network` maps z [B, latent_dim] and labels int64 [B] to images [B, channels, H, W] in [0, 1]. One object
    serves many batches: `begin` starts the next. A step has fixed shapes and never waits for the device. With
    `cuda_graph`, on a GPU, EAGER_STEPS steps run eagerly; then the whole step, with its optimizer, is
    captured as a CUDA graph and replayed: the same kernels in the same order.

    A view is a random crop and flip of each image, and a random circular shift of the batch by up to `shift`
    of its sides. In coarse steps, the objective sees views of half the size, for a quarter of the cost.
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
        shift: float = 0.0,
    ) -> None:
        self.views, self.shift, self.is_coarse = views or Views(), shift, False
        self.network, self.objective, self.accelerator = network, objective, accelerator
        device = accelerator.device
        on_gpu = device.type == "cuda"
        self.z = torch.zeros(batch_size, latent_dim, device=device, requires_grad=True)
        self.labels = torch.zeros(batch_size, dtype=torch.long, device=device)
        offsets = torch.zeros(2, batch_size, dtype=torch.long, device=device)
        self.crops = offsets[0], offsets[1], torch.zeros(batch_size, dtype=torch.bool, device=device)
        self.offset = torch.zeros(2, dtype=torch.long, device=device)
        self.lr = lr
        self.optimizer = torch.optim.Adam(
            [*network.parameters(), self.z],
            torch.tensor(lr, device=device) if on_gpu else lr,  # a graph reads the tensor at each replay
            betas=(0.5, 0.999),
            capturable=on_gpu,
            fused=on_gpu,
        )
        self.best_loss = torch.full((), float("inf"), device=device)
        self.best_images: Tensor | None = None
        self.draw = torch.Generator()
        self.graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        """The captured step by whether it is coarse."""
        self.side_stream = torch.cuda.Stream() if cuda_graph and on_gpu else None
        self.eager_steps_left = {False: EAGER_STEPS, True: EAGER_STEPS}

    @torch.no_grad()
    def begin(self, z: Tensor, labels: Tensor, draw: torch.Generator) -> None:
        """Start a batch and reset Adam. The caller sets the weights of the network, in place.

        Args:
            z: float32 [B, latent_dim], where the optimization starts.
            labels: int64 [B].
            draw: generator on the CPU for crops and flips.
        """
        self.redraw(z, labels)
        self.set_rate(1.0)
        self.set_coarse(False)
        self.draw = draw
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    @torch.no_grad()
    def redraw(self, z: Tensor, labels: Tensor) -> None:
        """Replace z and the labels in the middle of an optimization of the weights."""
        self.z.copy_(z)
        self.labels.copy_(labels)

    def set_rate(self, factor: float) -> None:
        """Set the learning rate of the next steps to `factor` times `lr`."""
        (group,) = self.optimizer.param_groups
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(self.lr * factor)
        else:
            group["lr"] = self.lr * factor

    def set_coarse(self, is_coarse: bool) -> None:
        """Make the next steps coarse or not, and forget the best images: the losses do not compare."""
        self.is_coarse = is_coarse
        self.best_loss.fill_(float("inf"))

    def step(self) -> None:
        """Draw the views on the CPU, and update the weights and z once."""
        pad, flip = self.views.crop_padding, self.views.flip
        crops = draw_crops(len(self.z), self.draw, pad=pad, flip=flip)
        for static, drawn in zip(self.crops, crops, strict=True):
            static.copy_(drawn, non_blocking=True)
        if self.shift:
            self.offset.copy_(torch.randint(1 << 30, (2,), generator=self.draw), non_blocking=True)
        if self.is_coarse in self.graphs:
            self.graphs[self.is_coarse].replay()
        elif self.side_stream is None:
            self.update()
        elif self.eager_steps_left[self.is_coarse] > 0:
            self.eager_steps_left[self.is_coarse] -= 1
            self._update_on_side_stream(self.side_stream)
        else:
            self._capture()

    def update(self) -> None:
        """Update the weights and z once, eagerly, with the current crops."""
        with self.accelerator.autocast():
            images = self.network(self.z, self.labels)
        images = images.float()
        loss = self.objective(images, self._views(images), self.labels)
        self.optimizer.zero_grad(set_to_none=False)  # all graphs write to the same gradients
        loss.backward()
        self._keep_best(images.detach(), loss.detach())
        self.optimizer.step()

    def _views(self, images: Tensor) -> Tensor:
        views = crop_flip_nchw(images, *self.crops, pad=self.views.crop_padding)
        if self.shift:
            for dim in (2, 3):
                side = views.shape[dim]
                most = int(self.shift * side)
                offset = self.offset[dim - 2] % (2 * most + 1) - most
                views = views.index_select(dim, (torch.arange(side, device=views.device) + offset) % side)
        if self.is_coarse:
            views = F.interpolate(views, scale_factor=0.5, mode="area")
        return views

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
        self.graphs[self.is_coarse] = graph
        graph.replay()
