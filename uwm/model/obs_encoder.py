"""Current images as one conditioning vector.

Dimension letters: B batch, V views, O observation frames, H and W image height and width, M images, E features per
image.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from uwm.data.batch import known_index
from uwm.model.vit import VisionTransformer
from uwm.policies import ObsEncoderConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ObsEncoder(nn.Module):
    """One image network shared by all views and frames; its features are concatenated, zero where an image is unknown.

    Args:
        config: kind and features.
        views: V.
        frames: O.
        image_size: (H, W).

    Raises:
        UserError: when a vision transformer's patch does not divide the image.
    """

    _mean: Tensor  # (3, 1, 1)
    _std: Tensor  # (3, 1, 1)

    def __init__(self, config: ObsEncoderConfig, *, views: int, frames: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.embed_dim = config.embed_dim
        self.out_dim = views * frames * config.embed_dim
        self.model = _image_network(config, image_size)
        self.register_buffer("_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, mask: Tensor, index: Tensor | None = None) -> Tensor:
        """Encode the known images only, so that absent views cost nothing and can't leak.

        Args:
            images: (B, V, O, 3, H, W) in [0, 1].
            mask: (B, V, O) bool: known.
            index: (M,) `known_index` of the mask; without it, finding it waits for the device.

        Returns:
            Features (B, V O E), ordered (view, frame, feature).
        """
        places = known_index(mask) if index is None else index
        known = ((images.flatten(0, 2)[places] - self._mean) / self._std).to(self._mean.dtype)  # (M, 3, H, W)
        # Also when no image is known: processes that train together must all run the same layers.
        embedded: Tensor = self.model(known)  # (M, E)
        features = embedded.new_zeros(mask.numel(), self.embed_dim).index_copy(0, places, embedded)
        return features.view(len(mask), self.out_dim)  # (B, V O E)


def _image_network(config: ObsEncoderConfig, image_size: tuple[int, int]) -> nn.Module:
    if config.kind == "resnet18gn":
        return ResNet18GN(config.embed_dim)
    if config.kind == "small":
        return SmallConvNet(config.embed_dim, image_size)
    return VisionTransformer(config.kind, image_size, embed_dim=config.embed_dim)


class SmallConvNet(nn.Module):
    """Four convolutions and a linear layer on the coarse grid they leave: cheap on a CPU, and it knows where.

    Each convolution halves the image until it is about as coarse as `GRID`; larger images are pooled to it.

    Args:
        embed_dim: E.
        image_size: (H, W); 64 x 112 images leave the grid exactly.
        features: channels of the first convolution.
    """

    GRID = (4, 7)

    def __init__(self, embed_dim: int, image_size: tuple[int, int], features: int = 16) -> None:
        super().__init__()
        channels = (3, features, 2 * features, 4 * features, 4 * features)
        layers: list[nn.Module] = []
        height, width = image_size
        for inputs, outputs in pairwise(channels):
            stride = 2 if min(height / self.GRID[0], width / self.GRID[1]) >= 2 else 1
            height, width = -(-height // stride), -(-width // stride)
            layers += [
                nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
                nn.GroupNorm(outputs // 8, outputs),
                nn.SiLU(),
            ]
        self.trunk = nn.Sequential(*layers)
        grid = (min(self.GRID[0], height), min(self.GRID[1], width))
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.fc = nn.Linear(channels[-1] * grid[0] * grid[1], embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) -> (M, E)."""
        out: Tensor = self.fc(self.pool(self.trunk(images)).flatten(1))
        return out


class ResNet18GN(nn.Module):
    """ResNet-18 (He et al. 2016, arXiv 1512.03385) with GroupNorm of 16 channels per group, under torchvision's names.

    Args:
        embed_dim: E, features of the linear head.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = _group_norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, stride=1)
        self.layer2 = _stage(64, 128, stride=2)
        self.layer3 = _stage(128, 256, stride=2)
        self.layer4 = _stage(256, 512, stride=2)
        self.fc = nn.Linear(512, embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) -> (M, E)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # (M, 64, H/4, W/4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (M, 512, H/32, W/32)
        out: Tensor = self.fc(x.mean(dim=(2, 3)))  # (M, E)
        return out


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = _group_norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.bn2 = _group_norm(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False), _group_norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


def _stage(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(_BasicBlock(inputs, outputs, stride), _BasicBlock(outputs, outputs, 1))


def _group_norm(channels: int) -> nn.GroupNorm:
    # Named bn* above, as torchvision does, so that published weights load.
    return nn.GroupNorm(channels // 16, channels)
