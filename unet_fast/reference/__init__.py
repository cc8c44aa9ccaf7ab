"""Slow, obvious truth for every op, in plain PyTorch and NumPy. Tests and benchmarks compare with it."""

from __future__ import annotations

from unet_fast.reference.bias_relu import bias_relu as bias_relu
from unet_fast.reference.conv3x3 import conv3x3 as conv3x3
from unet_fast.reference.conv_bias_relu import conv_bias_relu as conv_bias_relu
from unet_fast.reference.crop_concat import crop_concat as crop_concat
from unet_fast.reference.dice_cross_entropy import dice_cross_entropy as dice_cross_entropy
from unet_fast.reference.dice_cross_entropy import region_sums as region_sums
from unet_fast.reference.distance_transform import distance_transform as distance_transform
from unet_fast.reference.elastic_warp import elastic_warp as elastic_warp
from unet_fast.reference.head_cross_entropy import head_cross_entropy as head_cross_entropy
from unet_fast.reference.nearest_two import nearest_two as nearest_two
from unet_fast.reference.norm_activation import norm_activation as norm_activation
from unet_fast.reference.relu_pool_skip import relu_pool_skip as relu_pool_skip
from unet_fast.reference.up_conv_crop_concat import up_conv_crop_concat as up_conv_crop_concat
from unet_fast.reference.up_conv_into import up_conv_into as up_conv_into
from unet_fast.reference.upsample_concat import upsample_concat as upsample_concat
from unet_fast.reference.weight_map import weight_map as weight_map
from unet_fast.reference.weighted_cross_entropy import weighted_cross_entropy as weighted_cross_entropy
