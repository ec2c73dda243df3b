"""Per-channel scales and shifts of small feature maps in an OpenVINO model, written out over the map.

OpenVINO walks a map at a time where the channel is broadcast: of 16 pixels, that is one vector and a loop
around it. With a number for every pixel the whole sample is one row. The same products in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from openvino import Model, Node

LARGEST = 64
"""Pixels of a map up to which that is faster."""


def write_out_small_maps(model: Model) -> None:
    """Changes a model of static shapes in place."""
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Multiply", "Add") or not _is_small_map(node):
            continue
        shape = list(node.get_output_shape(0))
        for place in (0, 1):
            constant = node.input_value(place).get_node()
            if _is_per_channel(constant, shape[1]):
                values = np.asarray(constant.data).reshape(1, shape[1], 1, 1)
                written = np.broadcast_to(values, (1, *shape[1:])).copy()
                node.input(place).replace_source_output(opset13.constant(written).output(0))
    model.validate_nodes_and_infer_types()


def _is_small_map(node: Node) -> bool:
    shape = node.get_output_shape(0)
    return len(shape) == 4 and shape[2] * shape[3] <= LARGEST


def _is_per_channel(node: Node, channels: int) -> bool:
    if node.get_type_name() != "Constant":
        return False
    shape = list(node.get_output_shape(0))
    return shape[-2:] == [1, 1] and int(np.prod(shape)) == channels
