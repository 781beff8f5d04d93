"""A residual net whose answer is the same for an image turned by 90 degrees or mirrored, to rounding.

Group-equivariant convolutions (arXiv:1602.07576) of the square's eight symmetries, D4. A field of the
regular representation is a map for each symmetry; turning the image turns every map and permutes the eight.
Maps are (B, fields * 8, H, W), the symmetry running fastest. Everything between the pixels treats the borders
evenly, which takes two kinds of halving, one for an even and one for an odd number of pixels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from darkarc.config import ModelConfig
from darkarc.models.backbones._contract import Backbone, Shape, chosen_norm
from darkarc.models.backbones._layers import drop_blocks, drop_path, n_groups, run_stages

ORDER = 8
"""Elements of D4: four rotations, and four rotations after a mirroring."""


def act(element: int, grid: Tensor) -> Tensor:
    """A symmetry's image of a square (..., k, k): mirrored if `element` is at least 4, then turned."""
    if element >= ORDER // 2:
        grid = grid.flip(-1)
    return torch.rot90(grid, element % (ORDER // 2), (-2, -1))


def _permutations(kernel: int) -> Tensor:
    """(8, kernel²): entry p of an element's image comes from this place of the square, row by row."""
    places = torch.arange(kernel * kernel).reshape(kernel, kernel)
    return torch.stack([act(element, places).flatten() for element in range(ORDER)])


def _quotients() -> Tensor:
    """(8, 8): the element g⁻¹h at [g, h]."""
    square = _permutations(3).tolist()
    table = torch.empty(ORDER, ORDER, dtype=torch.long)
    for g in range(ORDER):
        for element in range(ORDER):
            # act(g, act(element, x)) reads place p of x at square[element][square[g][p]].
            product = [square[element][place] for place in square[g]]
            table[g, square.index(product)] = element
    return table


class FieldConvolution(nn.Module):
    """(B, n_in * group, H, W) -> (B, n_out * 8, H', W'); group is 1 for an image, 8 for fields.

    One kernel for every pair of fields, seen under all eight symmetries: for fields the output at g is the
    sum over h of the input at h convolved with g's image of kernel g⁻¹h (equation 11 of the paper).
    """

    index: Tensor

    def __init__(
        self, n_in: int, n_out: int, kernel: int, *, group: int = ORDER, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.n_in, self.n_out, self.group, self.kernel = n_in, n_out, group, kernel
        self.stride, self.padding = stride, padding
        # Four dimensions, so that a model can be put into channels-last memory.
        self.weight = nn.Parameter(torch.empty(n_out, n_in * group, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        places = _permutations(kernel)  # (8, k²)
        if group == ORDER:
            places = _quotients()[:, :, None] * kernel**2 + places[:, None, :]  # (8, 8, k²)
        self.register_buffer("index", places.flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n_in, n_out, kernel = self.n_in, self.n_out, self.kernel
        flat = self.weight.reshape(n_out, n_in, self.group * kernel**2)
        seen = flat.index_select(2, self.index).unflatten(2, (ORDER, self.group, kernel, kernel))
        weight = seen.transpose(1, 2).reshape(n_out * ORDER, n_in * self.group, kernel, kernel)
        return functional.conv2d(x, weight, stride=self.stride, padding=self.padding)


class FieldNorm(nn.Module):
    """Normalises (B, fields * 8, H, W) with one scale and offset a field, so that symmetries stay symmetries.

    batch: each field over images, symmetries and pixels; group: up to 8 fields of an image together; layer:
    all fields and symmetries of a pixel together.
    """

    def __init__(self, n_fields: int, kind: str) -> None:
        super().__init__()
        self.n_fields, self.kind = n_fields, kind
        self.norm: nn.Module
        if kind == "batch":
            self.norm = nn.BatchNorm2d(n_fields)
        elif kind == "group":
            self.norm = nn.GroupNorm(n_groups(n_fields), n_fields)
        else:
            self.norm = _PixelNorm(n_fields)

    @property
    def scale(self) -> Tensor:
        assert isinstance(self.norm.weight, Tensor)
        return self.norm.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "layer":
            return self.norm(x.unflatten(1, (self.n_fields, ORDER))).flatten(1, 2)
        rows = x.reshape(x.shape[0], self.n_fields, ORDER * x.shape[2], x.shape[3])
        return self.norm(rows).reshape(x.shape)


class _PixelNorm(nn.Module):
    """Layer normalisation of (B, fields, 8, H, W) over fields and symmetries."""

    def __init__(self, n_fields: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_fields))
        self.bias = nn.Parameter(torch.zeros(n_fields))

    def forward(self, x: Tensor) -> Tensor:
        last = functional.layer_norm(x.permute(0, 3, 4, 1, 2), x.shape[1:3], eps=1e-6)
        scaled = last * self.weight[:, None] + self.bias[:, None]
        return scaled.permute(0, 3, 4, 1, 2)


def halve(x: Tensor) -> Tensor:
    """Half the resolution; every symmetry of the square maps the new pixels onto themselves.

    An even map is averaged over 2x2 pixels, an odd one over 3x3 around every other pixel.
    """
    if x.shape[-1] % 2 == 0:
        return functional.avg_pool2d(x, 2)
    return functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)


class FieldBlock(nn.Module):
    """A residual block of fields; a stride averages first."""

    def __init__(self, n_in: int, n_out: int, stride: int, drop_rate: float, norm: str) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = FieldConvolution(n_in, n_out, 3, padding=1)
        self.norm1 = FieldNorm(n_out, norm)
        self.conv2 = FieldConvolution(n_out, n_out, 3, padding=1)
        self.norm2 = FieldNorm(n_out, norm)
        self.drop = drop_path(drop_rate)
        self.shortcut: nn.Module = nn.Identity()
        if n_in != n_out:
            self.shortcut = nn.Sequential(FieldConvolution(n_in, n_out, 1), FieldNorm(n_out, norm))
        nn.init.zeros_(self.norm2.scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            x = halve(x)
        branch = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(self.shortcut(x) + self.drop(branch))


class D4ResNet(Backbone):
    """Four stages of two blocks; the features are mean and maximum over the symmetries of the maps' means.

    `width` multiplies the numbers of fields, each of which is eight channels.
    """

    def __init__(self, model: ModelConfig, shape: Shape, in_channels: int) -> None:
        super().__init__()
        norm = chosen_norm(model, "batch")
        widths = [max(1, round(count * model.width)) for count in (4, 8, 16, 24)]
        # Even images need an even kernel for a grid of every other pixel to lie evenly on them.
        kernel = 6 if shape[0] % 2 == 0 else 5
        self.lift = FieldConvolution(in_channels, widths[0], kernel, group=1, stride=2, padding=2)
        self.norm = FieldNorm(widths[0], norm)
        blocks: list[nn.Module] = []
        n_in, n_blocks = widths[0], 2 * len(widths)
        for stage, n_out in enumerate(widths):
            for position in range(2):
                rate = model.stochastic_depth * (len(blocks) + 1) / n_blocks
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(FieldBlock(n_in, n_out, stride, rate, norm))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.drop_blocks = drop_blocks(n_blocks, model.drop_block, range(n_blocks - 4, n_blocks))
        self.n_features = 2 * n_in

    def forward(self, x: Tensor) -> Tensor:
        x = run_stages(self.blocks, self.drop_blocks, functional.relu(self.norm(self.lift(x))))
        symmetries = x.mean(dim=(2, 3)).unflatten(1, (-1, ORDER))  # (B, fields, 8)
        return torch.cat([symmetries.mean(dim=2), symmetries.amax(dim=2)], dim=1)
