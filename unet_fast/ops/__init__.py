"""The operators. Each file holds one: its checks, its registration with torch and the choice of its backend."""

from __future__ import annotations

from unet_fast.ops._backends import use_backend
from unet_fast.ops._convolution import use_convolution
from unet_fast.ops.bias_relu import bias_relu
from unet_fast.ops.conv3x3 import conv3x3
from unet_fast.ops.conv_bias_relu import conv_bias_relu
from unet_fast.ops.crop_concat import crop_concat
from unet_fast.ops.dice_cross_entropy import dice_cross_entropy
from unet_fast.ops.distance_transform import distance_transform
from unet_fast.ops.elastic_warp import elastic_warp
from unet_fast.ops.fill_buffer import fill_buffer
from unet_fast.ops.head_cross_entropy import head_cross_entropy
from unet_fast.ops.nearest_two import nearest_two
from unet_fast.ops.norm_activation import norm_activation
from unet_fast.ops.relu_pool_skip import relu_pool_skip
from unet_fast.ops.up_conv_crop_concat import up_conv_crop_concat
from unet_fast.ops.up_conv_into import up_conv_into
from unet_fast.ops.upsample_concat import upsample_concat
from unet_fast.ops.weight_map import weight_map
from unet_fast.ops.weighted_cross_entropy import weighted_cross_entropy

__all__ = [
    "bias_relu",
    "conv3x3",
    "conv_bias_relu",
    "crop_concat",
    "dice_cross_entropy",
    "distance_transform",
    "elastic_warp",
    "fill_buffer",
    "head_cross_entropy",
    "nearest_two",
    "norm_activation",
    "relu_pool_skip",
    "up_conv_crop_concat",
    "up_conv_into",
    "use_backend",
    "use_convolution",
    "upsample_concat",
    "weight_map",
    "weighted_cross_entropy",
]
