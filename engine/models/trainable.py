"""Check on two noise images that a student can be trained, and find its logits in train mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.models.classifier import Classifier
from engine.models.outputs import EntryPath, described, entries, entry
from engine.models.torch_file import first_line
from engine.seeding import generator


def require_trainable(classifier: Classifier, section: str, image_size: tuple[int, int]) -> None:
    """Run `classifier` in train mode on the CPU, and set its `output_in_training`.

    `memory_format` becomes contiguous if only that can be trained. Mode, buffers, the weights' memory layout
    and torch's generator are restored. Raises a UserError that names `section`.name if it cannot be trained,
    if its output holds no logits, or if no parameter gets a gradient.
    """
    try:
        try:
            output, path, reached, cut_off = _trained(classifier, image_size)
        except Exception:  # a foreign forward may do anything with strides
            if classifier.memory_format == torch.contiguous_format:
                raise
            classifier.memory_format = torch.contiguous_format
            output, path, reached, cut_off = _trained(classifier, image_size)
    except Exception as error:  # the network may be anyone's
        height, width = image_size
        raise UserError(
            f"{section}.name: {classifier.name} runs on {height}x{width} images but cannot be "
            f"trained on them ({type(error).__name__}: {first_line(error)}); use larger images or another "
            "network"
        ) from error
    if path is None:
        raise UserError(
            f"{section}.name: {classifier.name} returns {described(output)} for two images in train mode, "
            f"but no single tensor [2, {classifier.num_classes}] of logits; make it return its logits"
        )
    if not reached:
        raise UserError(
            f"{section}.name: {classifier.name} cannot be trained: no parameter gets a gradient from its "
            "logits; remove torch.no_grad() or detach() from its forward"
        )
    if cut_off and section == "student":  # only a student starts from random weights
        raise UserError(
            f"{section}.name: {len(cut_off)} layers of {classifier.name} run but get no gradient "
            f"(`{cut_off[0]}`), so they would stay random; remove torch.no_grad() or detach() from its "
            "forward"
        )
    classifier.output_in_training = path


def _trained(
    classifier: Classifier, image_size: tuple[int, int]
) -> tuple[Any, EntryPath | None, set[int], list[str]]:
    """Run a pass in train mode and find what its output trains.

    Returns:
        The output, the path to its logits, the indices of the parameters that the logits train, and the
        layers that run but get no gradient from any part of the output.
    """
    images = torch.rand(2, 3, *image_size, generator=generator(0, "probe"))
    images = images.to(memory_format=classifier.memory_format)
    with _restored(classifier), torch.enable_grad():
        classifier.to(memory_format=classifier.memory_format)
        by_eval = _reached(classifier.eval()(images), classifier)
        with _running(classifier.train()) as ran:
            output: Any = classifier.network(classifier.adapted(images))
        path = _path(output, classifier, by_eval)
        reached = set() if path is None else _reached(entry(output, path), classifier)
        return output, path, reached, _cut_off(output, classifier, ran)


@contextmanager
def _running(module: nn.Module) -> Iterator[set[nn.Module]]:
    """Collect the submodules that run inside the block."""
    ran: set[nn.Module] = set()
    handles = [layer.register_forward_hook(lambda layer, *_: ran.add(layer)) for layer in module.modules()]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def _cut_off(output: object, classifier: Classifier, ran: set[nn.Module]) -> list[str]:
    """Return the layers that ran and have their own parameters, but get no gradient."""
    reached: set[int] = set()
    for _, _, tensor in entries(output):
        if tensor.is_floating_point():
            reached |= _reached(tensor, classifier)
    indices = {parameter: index for index, parameter in enumerate(classifier.parameters())}
    by_layer = {path: _indices(layer, indices) for path, layer in classifier.named_modules() if layer in ran}
    return [path.removeprefix("network.") for path, own in by_layer.items() if own and not own & reached]


def _indices(layer: nn.Module, indices: dict[nn.Parameter, int]) -> set[int]:
    return {indices[parameter] for parameter in layer._parameters.values() if parameter is not None}


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    training, wanted = module.training, [parameter.requires_grad for parameter in module.parameters()]
    module.requires_grad_(True)  # as in training
    try:
        with buffers_restored(module), torch.random.fork_rng(devices=[]):
            yield
    finally:
        module.train(training).to(memory_format=torch.contiguous_format)
        for parameter, value in zip(module.parameters(), wanted, strict=True):
            parameter.requires_grad_(value)


@contextmanager
def buffers_restored(module: nn.Module) -> Iterator[None]:
    """Restore all buffers after the block: the same tensors with the same values."""
    buffers = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for owner, name, buffer, before in buffers:
            buffer.data.copy_(before)
            owner._buffers[name] = buffer  # a forward may have replaced it


def _path(output: object, classifier: Classifier, by_eval: set[int]) -> EntryPath | None:
    """Return the path to the logits: the path in eval mode, else the only tensor of their shape, else None.

    If several tensors have their shape, choose the one that depends on the parameters `by_eval`, which the
    logits depend on in eval mode.
    """
    shape = (2, classifier.num_classes)
    found = {path: tensor for _, path, tensor in entries(output) if tensor.shape == shape}
    if classifier.output in found:
        return classifier.output
    if len(found) > 1:
        found = {path: value for path, value in found.items() if _reached(value, classifier) == by_eval}
    return next(iter(found)) if len(found) == 1 else None


def _reached(logits: object, classifier: Classifier) -> set[int]:
    """Return the indices of the parameters that get a gradient from the logits."""
    if not isinstance(logits, Tensor) or not logits.requires_grad:
        return set()
    grads = torch.autograd.grad(
        logits.float().sum(), list(classifier.parameters()), retain_graph=True, allow_unused=True
    )
    return {index for index, grad in enumerate(grads) if grad is not None}
