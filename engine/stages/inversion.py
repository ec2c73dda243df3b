"""The optimization of a batch of images: its tensors, its optimizer, and a step of it."""

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
"""(augmented images, float32 [B, channels, H, W]; labels, int64 [B]) -> the scalar loss."""

EAGER_STEPS = 3


class Inversion:
    """Adam over the weights of `network` and z, together, for the images with the lowest loss.

    One object serves many batches: `begin` starts the next. A step has fixed shapes and never waits for the
    device. With `captured`, on a GPU, the first EAGER_STEPS run as they are, then the whole step, optimizer
    included, is recorded as a CUDA graph and replayed for all that follow: the same kernels in order.
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
        captured: bool,
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
        self.side_stream = torch.cuda.Stream() if captured and on_gpu else None
        self.eager_steps_left = EAGER_STEPS

    @torch.no_grad()
    def begin(self, z: Tensor, labels: Tensor, draw: torch.Generator) -> None:
        """A new batch: z [B, latent_dim], labels [B], and the CPU generator of its crops; Adam starts anew.

        The weights of the network are the caller's to set, in place.
        """
        self.z.copy_(z)
        self.labels.copy_(labels)
        self.draw = draw
        self.best_loss.fill_(float("inf"))
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def step(self) -> None:
        """One update of the weights and z; crops and flips are drawn on the CPU."""
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
        """One update with the crops that are set."""
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
        """As capturing asks of the steps before it: allocations and cuDNN's choices are then settled."""
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.update()
        torch.cuda.current_stream().wait_stream(side)

    def _capture(self) -> None:
        """Records a step, which does not run it, and then runs it."""
        graph = torch.cuda.CUDAGraph()
        try:
            with capture_cuda_graph(graph):
                self.update()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f"synthesize: the step cannot be recorded as a CUDA graph ({reason}); "
                "take --compute.cuda_graphs false"
            ) from error
        self.graph = graph
        graph.replay()
