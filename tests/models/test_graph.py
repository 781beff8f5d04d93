"""The graph of bright pixels against brute force, and its layer against torch_geometric's own."""

import numpy as np
import pytest
import torch

from darkarc.config import ModelConfig
from darkarc.models import BACKBONES
from darkarc.models.backbones.graph import ArcGraph, GraphLayer, brightest, nearest


@pytest.mark.parametrize("levels", [None, 4])
def test_the_brightest_pixels_are_chosen_and_ties_go_to_the_first(levels: int | None) -> None:
    images = np.random.default_rng(0).normal(size=(3, 2, 12, 10))
    if levels:
        images = np.round(images * levels) / levels
    light = np.round(np.float32(images)[:, 0].reshape(3, -1) * 4096)
    expected = np.argsort(-light, axis=1, kind="stable")[:, :40]
    assert np.array_equal(brightest(torch.tensor(images, dtype=torch.float32), 40).numpy(), expected)


def test_neighbours_are_the_nearest_and_ties_go_to_the_brighter() -> None:
    rows, columns = torch.randint(0, 9, (2, 2, 50))
    square = (rows[:, :, None] - rows[:, None]) ** 2 + (columns[:, :, None] - columns[:, None]) ** 2
    expected = np.argsort(square.numpy(), axis=2, kind="stable")[:, :, :12]
    assert np.array_equal(nearest(rows, columns, 12).numpy(), expected)


def test_edges_lead_to_every_node_from_its_own_image() -> None:
    graph = BACKBONES["arc_graph"](ModelConfig(width=0.25), (20, 20))
    assert isinstance(graph, ArcGraph)
    n_nodes, k = graph.n_nodes, graph.n_neighbours
    neighbours = torch.randint(0, n_nodes, (3, n_nodes, 20))
    sources, targets = graph._edges(neighbours)
    assert torch.equal(targets, torch.arange(3 * n_nodes).repeat_interleave(k))
    assert torch.equal(sources // n_nodes, targets // n_nodes)
    assert torch.equal((sources % n_nodes).reshape(3, n_nodes, k), neighbours[:, :, :k])


def test_the_largest_message_is_torch_geometrics_maximum() -> None:
    from torch_geometric.nn import EdgeConv

    torch.manual_seed(0)
    layer = GraphLayer(8, 5, 0.0, "layer")
    theirs = EdgeConv(layer.convolution.nn, aggr="max")
    nodes = torch.randn(30, 10)
    torch.manual_seed(1)
    edges = torch.stack([torch.randint(0, 30, (150,)), torch.arange(30).repeat_interleave(5)])
    # The constructor of `theirs` drew the shared weights anew: both see the same.
    torch.testing.assert_close(layer.convolution(nodes, edges), theirs(nodes, edges))


def test_the_sky_says_nothing_and_the_arc_does() -> None:
    torch.manual_seed(0)
    graph = BACKBONES["arc_graph"](ModelConfig(width=0.25), (24, 24)).eval()
    images = torch.rand(1, 1, 24, 24)
    places = brightest(images, 256)[0]
    sky = torch.ones(576, dtype=torch.bool)
    sky[places] = False
    darker, arc = images.clone(), images.clone()
    darker.view(-1)[sky] -= 0.05
    arc.view(-1)[places[3]] += 0.5
    with torch.inference_mode():
        assert torch.equal(graph(darker), graph(images))
        assert not torch.allclose(graph(arc), graph(images))
