"""ResNet encoders whose weights carry torchvision's names, so that its files load."""

from __future__ import annotations

from torch import Tensor, nn

from unet_fast.models import reach
from unet_fast.models.fusion import PLAIN, Fusion
from unet_fast.models.layers import run_layers

STAGE_STRIDES = (1, 2, 2, 2)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, C_in, H, W) -> (N, width, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor, fusion: Fusion = PLAIN) -> Tensor:
        """The residual added to the shortcut."""
        shortcut = x if self.downsample is None else run_layers(list(self.downsample), x, fusion)
        x = run_layers((self.conv1, self.bn1, self.relu), x, fusion)
        return self.relu(run_layers((self.conv2, self.bn2), x, fusion) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 beside a shortcut: (N, C_in, H, W) -> (N, 4 * width, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor, fusion: Fusion = PLAIN) -> Tensor:
        """The residual added to the shortcut."""
        shortcut = x if self.downsample is None else run_layers(list(self.downsample), x, fusion)
        x = run_layers((self.conv1, self.bn1, self.relu), x, fusion)
        x = run_layers((self.conv2, self.bn2, self.relu), x, fusion)
        return self.relu(run_layers((self.conv3, self.bn3), x, fusion) + shortcut)


class ResNetEncoder(nn.Module):
    """ResNet (He et al., 2016) without its classifier: images (N, C, H, W) -> maps at 1/2, 1/4, 1/8, 1/16 and 1/32.

    The 7x7 stem, then a 3x3 max-pooling of stride 2, then four stages. With ``base_channels=64`` the names and shapes
    in its ``state_dict`` are those of torchvision's ``resnet18`` (34, 50), less ``fc``.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        in_channels: int,
        base_channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, base_channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.channels = [base_channels]
        for index, (count, stride) in enumerate(zip(blocks, STAGE_STRIDES, strict=True)):
            width = base_channels * 2**index
            stage = nn.Sequential()
            for position in range(count):
                stage.append(
                    block(
                        self.channels[-1] if position == 0 else width * block.expansion,
                        width,
                        1 if position else stride,
                    )
                )
            self.add_module(f"layer{index + 1}", stage)
            self.channels.append(width * block.expansion)

    @property
    def stages(self) -> list[nn.Module]:
        """The four stages, from the finest on."""
        return [self.get_submodule(f"layer{index + 1}") for index in range(len(STAGE_STRIDES))]

    def forward(self, x: Tensor, fusion: Fusion = PLAIN) -> list[Tensor]:
        """The five maps, from the finest on."""
        maps = [run_layers((self.conv1, self.bn1, self.relu), x, fusion)]
        x = self.maxpool(maps[0])
        for stage in self.stages:
            for block in stage.children():
                x = block(x, fusion)
            maps.append(x)
        return maps

    def needed(self, spans: list[reach.Span]) -> reach.Span:
        """The span of images that these spans of the five maps need."""
        span = spans[-1]
        for index in reversed(range(len(STAGE_STRIDES))):
            convolutions = [layer for layer in self.stages[index].modules() if isinstance(layer, nn.Conv2d)]
            for layer in reversed(convolutions):
                # the shortcut of a stage is beside its convolutions, and sees less
                if layer.kernel_size[0] > 1:
                    span = _through(span, layer)
            if index == 0:
                span = _through(span, self.maxpool)
            span = reach.hull(span, spans[index])
        return _through(span, self.conv1)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """A 1x1 convolution where the shape changes; ``None`` where the input itself will do."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def _through(span: reach.Span, layer: nn.Module) -> reach.Span:
    """Backwards through a convolution or pooling with square windows."""
    kernel, stride, padding = (
        value[0] if isinstance(value, tuple) else value for value in (layer.kernel_size, layer.stride, layer.padding)
    )
    return reach.convolution(span, int(kernel), int(stride), int(padding))  # type: ignore[arg-type]
