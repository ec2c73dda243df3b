"""Networks for 32x32 images; `engine:NAME` in a recipe is one of the factories listed here."""

from engine.models.lenet import lenet_5, lenet_5_half
from engine.models.mobilenet import mobilenet_v2
from engine.models.resnet import resnet_18, resnet_34
from engine.models.vgg import vgg_11_bn
from engine.models.wide_resnet import wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = [
    "lenet_5",
    "lenet_5_half",
    "mobilenet_v2",
    "resnet_18",
    "resnet_34",
    "vgg_11_bn",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
]
