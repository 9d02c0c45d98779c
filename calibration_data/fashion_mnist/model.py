# SPDX-License-Identifier: Apache-2.0
"""Demonstration network: a depthwise-separable residual classifier for Fashion-MNIST.

Nearly all multiply-accumulates are in 1x1 convolutions, whose channel counts are multiples of 16,
so a runtime with fast INT8 matrix instructions shows a clear gain from quantization.
"""

from __future__ import annotations

from torch import Tensor, nn

STEM_CHANNELS = 64
BODY_CHANNELS = 192
HIDDEN_CHANNELS = 256
BLOCKS = 6
CLASSES = 10


def _depthwise(channels: int) -> nn.Sequential:
    """Build a 3x3 depthwise convolution with BatchNorm and ReLU6.

    Args:
        channels: Number of input and output channels C.

    Returns:
        A module that maps [N,C,H,W] to [N,C,H,W].
    """
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(),
    )


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    """Build a 1x1 convolution with BatchNorm and ReLU6.

    Args:
        inputs: Number of input channels I.
        outputs: Number of output channels O.

    Returns:
        A module that maps [N,I,H,W] to [N,O,H,W].
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6()
    )


class ResidualBlock(nn.Module):
    """Depthwise 3x3, pointwise expansion, linear pointwise projection, residual add."""

    def __init__(self, channels: int, hidden: int) -> None:
        """Create the layers.

        Args:
            channels: Number of input and output channels C.
            hidden: Number of channels between the two pointwise convolutions.
        """
        super().__init__()
        self.depthwise = _depthwise(channels)
        self.expand = _pointwise(channels, hidden)
        self.project = nn.Sequential(
            nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Activations [N,C,H,W].

        Returns:
            Activations [N,C,H,W].
        """
        y: Tensor = self.project(self.expand(self.depthwise(x)))
        return x + y


class FashionNet(nn.Module):
    """Residual network of depthwise and pointwise convolutions for 28x28 grey images."""

    def __init__(self) -> None:
        """Create the layers with random weights."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, STEM_CHANNELS, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(STEM_CHANNELS),
            nn.ReLU6(),
        )
        self.widen = nn.Sequential(
            _depthwise(STEM_CHANNELS), _pointwise(STEM_CHANNELS, BODY_CHANNELS)
        )
        self.blocks = nn.Sequential(
            *(ResidualBlock(BODY_CHANNELS, HIDDEN_CHANNELS) for _ in range(BLOCKS))
        )
        self.tail = _pointwise(BODY_CHANNELS, HIDDEN_CHANNELS)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(HIDDEN_CHANNELS, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images.

        Args:
            image: Grey values in 0..1, float32 [N,1,28,28]; 0 is the background.

        Returns:
            Logits, float32 [N,10].
        """
        x = self.tail(self.blocks(self.widen(self.stem(image))))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


def model() -> nn.Module:
    """Create the network with random weights.

    Returns:
        The network; load `weights.safetensors` into it with `load_state_dict`.
    """
    return FashionNet()
