"""Search spaces: bounds, conditions, coordinates, grids."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from darkarc.tuning.space import Dimension, active, corners, grid, in_order


def test_a_dimension_has_exactly_one_kind() -> None:
    with pytest.raises(ValidationError, match="exactly one"):
        Dimension(uniform=(0, 1), choice=(1, 2))
    with pytest.raises(ValidationError, match="exactly one"):
        Dimension()
    with pytest.raises(ValidationError, match="above 0"):
        Dimension(log_uniform=(0.0, 1.0))
    with pytest.raises(ValidationError, match="low < high"):
        Dimension(integer=(3, 3))
    with pytest.raises(ValidationError, match="twice"):
        Dimension(choice=("a", "a"))


@given(
    low=st.floats(1e-6, 1.0),
    ratio=st.floats(1.5, 1e4),
    coordinate=st.floats(0, 1),
    kind=st.sampled_from(["uniform", "log_uniform"]),
)
def test_coordinates_and_values_are_inverse(low: float, ratio: float, coordinate: float, kind: str) -> None:
    dimension = Dimension(**{kind: (low, low * ratio)})
    value = dimension.value_at(coordinate)
    assert dimension.contains(value)
    assert dimension.coordinate(float(value)) == pytest.approx(coordinate, abs=1e-6)


def test_a_logarithmic_middle_is_the_geometric_mean() -> None:
    assert Dimension(log_uniform=(1e-4, 1e-2)).value_at(0.5) == pytest.approx(math.sqrt(1e-4 * 1e-2))
    assert Dimension(log_integer=(4, 64)).value_at(0.5) == 16
    assert Dimension(uniform=(0, 4)).value_at(7.0) == 4


def test_an_integer_is_whole_and_within_its_bounds() -> None:
    dimension = Dimension(integer=(1, 4))
    inside = [value for value in (0, 1, 1.5, 2, 2.0, 4, 5, "2") if dimension.contains(value)]
    assert inside == [1, 2, 2.0, 4]


def test_true_is_not_one() -> None:
    dimension = Dimension(choice=(1, 2))
    assert dimension.contains(1)
    assert not dimension.contains(True)
    assert not Dimension(uniform=(0, 2)).contains(True)


CONDITIONAL = {
    "dropout": Dimension(choice=(0.1, 0.2), when={"backbone": ["b", "c"]}),
    "backbone": Dimension(choice=("a", "b", "c")),
    "depth": Dimension(integer=(1, 2), when={"dropout": 0.2}),
}


def test_a_grid_visits_every_reachable_combination_once() -> None:
    points = list(grid(CONDITIONAL))
    # a; b and c each with 0.1, or with 0.2 and two depths
    assert len(points) == 1 + 2 * (1 + 2)
    assert len({tuple(sorted(p.items(), key=str)) for p in points}) == len(points)
    assert {"backbone": "a"} in points
    assert {"backbone": "c", "dropout": 0.2, "depth": 2} in points
    assert all(set(point) == set(active(CONDITIONAL, point)) for point in points)


def test_corners_show_every_value() -> None:
    shown = list(corners(CONDITIONAL))
    for key, dimension in CONDITIONAL.items():
        assert {point[key] for point in shown if key in point} == set(dimension.examples)


def test_a_circle_of_conditions_is_named() -> None:
    circle = {
        "x": Dimension(choice=(1, 2), when={"y": 1}),
        "y": Dimension(choice=(1, 2), when={"x": 1}),
        "z": Dimension(choice=(1, 2)),
    }
    with pytest.raises(ValueError, match="x, y depend on each other"):
        in_order(circle)
