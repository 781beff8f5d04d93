"""A graph network over the brightest pixels of the arc: most of an image is sky and says nothing.

Nodes are the brightest pixels, edges go to near ones among them, messages are those of EdgeConv
(arXiv:1801.07829, torch_geometric). Deeper layers reach farther, by every second, fourth and eighth neighbour
(dilated graphs, arXiv:1904.03751), so that a few layers see along the whole arc.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from darkarc.config import ModelConfig
from darkarc.models.backbones._contract import SMALL_IMAGE, Backbone, Shape, channels, chosen_norm
from darkarc.models.backbones._layers import drop_path

N_NEIGHBOURS = 9
DILATIONS = (1, 2, 4, 8)
LEVELS = 4096
"""Brightness steps in a standard deviation that tell pixels apart when the brightest are chosen."""


def node_norm(n_features: int, kind: str) -> nn.Module:
    """A normalisation of (N, n_features)."""
    return nn.BatchNorm1d(n_features) if kind == "batch" else nn.LayerNorm(n_features)


def brightest(images: Tensor, n_nodes: int) -> Tensor:
    """(B, C, H, W) -> (B, n_nodes) places of the brightest pixels of the first channel, brightest first.

    That channel is the image; places count row by row; of equally bright pixels the first is taken. Whole
    numbers make the order the same on every device and in ONNX.
    """
    with torch.autocast(images.device.type, enabled=False):
        light = images[:, 0].float().flatten(1)
        n_pixels = light.shape[1]
        level = (light * LEVELS).round().clamp(-1e9, 1e9).to(torch.int64)
        rank = torch.arange(n_pixels - 1, -1, -1, device=images.device)
        return (level * n_pixels + rank).topk(n_nodes, dim=1).indices


def nearest(rows: Tensor, columns: Tensor, n_nearest: int) -> Tensor:
    """(B, N) whole coordinates -> (B, N, n_nearest) nodes by distance, each itself first.

    Of equally near nodes the one with the smaller number: the brighter one.
    """
    n_nodes = rows.shape[1]
    square = (rows[:, :, None] - rows[:, None, :]) ** 2 + (columns[:, :, None] - columns[:, None, :]) ** 2
    number = torch.arange(n_nodes, device=rows.device)
    return (square * n_nodes + number).topk(n_nearest, dim=2, largest=False).indices


class GraphLayer(nn.Module):
    """EdgeConv as a residual branch: the largest of MLP(node, neighbour - node) over the neighbours.

    Positions go into every layer's messages beside the features.
    """

    def __init__(self, n_features: int, n_neighbours: int, drop_rate: float, norm: str) -> None:
        from torch_geometric.nn import EdgeConv

        super().__init__()
        mlp = nn.Sequential(
            nn.Linear(2 * (n_features + 2), n_features, bias=False),
            node_norm(n_features, norm),
            nn.ReLU(inplace=True),
            nn.Linear(n_features, n_features, bias=False),
            node_norm(n_features, norm),
        )
        self.convolution = EdgeConv(mlp, aggr=_largest_of(n_neighbours))
        self.drop = drop_path(drop_rate)

    def forward(self, x: Tensor, position: Tensor, edges: Tensor) -> Tensor:
        """x (B, N, F), position (B, N, 2), edges (2, B N k) between B N nodes -> (B, N, F)"""
        nodes = torch.cat([x, position.to(x.dtype)], dim=2).flatten(0, 1)
        branch = self.convolution(nodes, edges).reshape(x.shape)
        return torch.relu(x + self.drop(branch))


def _largest_of(n_neighbours: int) -> nn.Module:
    """torch_geometric's maximum, for nodes that all have the same number of neighbours, in order.

    Then it is a reshape: no scatter, which is slow on the CPU and has no reduced precision everywhere.
    """
    from torch_geometric.nn.aggr import Aggregation

    class Largest(Aggregation):
        def forward(
            self, x: Tensor, index: Any = None, ptr: Any = None, dim_size: Any = None, dim: int = -2
        ) -> Tensor:
            return x.unflatten(0, (-1, n_neighbours)).amax(dim=1)

    return cast(nn.Module, Largest())


class ArcGraph(Backbone):
    """The brightest 256 pixels (512 beyond 96 pixels a side), four graph layers, then mean and maximum."""

    def __init__(self, model: ModelConfig, shape: Shape, in_channels: int) -> None:
        super().__init__()
        self.shape = shape
        self.n_nodes = min(256 if max(shape) <= SMALL_IMAGE else 512, shape[0] * shape[1])
        norm = chosen_norm(model, "batch")
        n_features = channels(48, model.width)
        self.embed = nn.Linear(in_channels + 2, n_features)
        self.n_neighbours = max(1, min(N_NEIGHBOURS, (self.n_nodes - 1) // max(DILATIONS)))
        self.layers = nn.ModuleList(
            GraphLayer(n_features, self.n_neighbours, model.stochastic_depth * number / len(DILATIONS), norm)
            for number in range(1, len(DILATIONS) + 1)
        )
        n_out = channels(192, model.width)
        self.mix = nn.Sequential(
            nn.Linear(n_features * (len(DILATIONS) + 1), n_out, bias=False), node_norm(n_out, norm), nn.ReLU()
        )
        self.n_features = 2 * n_out

    def forward(self, x: Tensor) -> Tensor:
        places = brightest(x, self.n_nodes)  # (B, N)
        rows, columns = places // self.shape[1], places % self.shape[1]
        light = x.flatten(2).transpose(1, 2)  # (B, H W, C)
        light = light.gather(1, places[:, :, None].expand(-1, -1, light.shape[2]))
        position = self._position(rows, columns).to(x.dtype)
        neighbours = nearest(rows, columns, 1 + max(DILATIONS) * (self.n_neighbours - 1) + 1)
        x = torch.relu(self.embed(torch.cat([light, position], dim=2)))
        levels = [x]
        for layer, dilation in zip(self.layers, DILATIONS, strict=True):
            x = layer(x, position, self._edges(neighbours[:, :, 1::dilation]))
            levels.append(x)
        mixed = self.mix(torch.cat(levels, dim=2).flatten(0, 1)).unflatten(0, (-1, self.n_nodes))
        return torch.cat([mixed.mean(dim=1), mixed.amax(dim=1)], dim=1)

    def _position(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(B, N) pixels -> (B, N, 2): right and down of the image's centre, in halves of its longer side."""
        height, width = self.shape
        half = max(height, width) / 2
        return torch.stack([columns - (width - 1) / 2, rows - (height - 1) / 2], dim=2) / half

    def _edges(self, neighbours: Tensor) -> Tensor:
        """(B, N, >= k) neighbours in an image -> (2, B N k) edges (from, to) between B N nodes, by target."""
        batch, n_nodes, k = neighbours.shape[0], self.n_nodes, self.n_neighbours
        first = torch.arange(batch, device=neighbours.device)[:, None, None] * n_nodes
        sources = (neighbours[:, :, :k] + first).reshape(-1)
        targets = torch.arange(batch * n_nodes, device=neighbours.device)[:, None].expand(-1, k).reshape(-1)
        return torch.stack([sources, targets])
