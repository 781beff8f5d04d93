"""Search spaces: what a study may vary, where, and under which condition. Pure; knows no search library."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from darkarc.config import Section

Value = bool | int | float | str
"""What a parameter can be set to."""

Assignment = dict[str, Value]
"""Dotted key of `params.yaml` to value."""


def _increasing(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"expected [low, high] with low < high, found [{low:g}, {high:g}]")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_increasing)]
IntegerBounds = Annotated[tuple[int, int], AfterValidator(_increasing)]


class Dimension(Section):
    """One searched parameter: exactly one of the five kinds, and optionally the values of other parameters
    that it needs (`when`)."""

    uniform: Bounds | None = Field(None, description="real, uniform on [low, high]")
    log_uniform: Bounds | None = Field(None, description="real, uniform in its logarithm on [low, high]")
    integer: IntegerBounds | None = Field(None, description="low, low + 1, …, high")
    log_integer: IntegerBounds | None = Field(None, description="integer, uniform in its logarithm")
    choice: tuple[Value, ...] | None = Field(None, min_length=2, description="one of these values")
    when: dict[str, Value | list[Value]] = Field(
        {}, description="searched only where these keys have this value, or one of these"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "Dimension":
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"expected exactly one of {', '.join(KINDS)}, found {', '.join(kinds) or 'none'}"
            )
        if kinds[0].startswith("log_") and self.bounds[0] <= 0:
            raise ValueError(f"{kinds[0]}: bounds must be above 0, found {self.bounds[0]:g}")
        empty = [key for key, wanted in self.when.items() if wanted == []]
        if empty:
            raise ValueError(f"when: {empty[0]}: expected a value or a list of some, found an empty list")
        if self.choice is not None and len({(type(v), v) for v in self.choice}) < len(self.choice):
            raise ValueError("choice: a value is listed twice")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def is_numeric(self) -> bool:
        return self.choice is None

    @property
    def is_integer(self) -> bool:
        return self.kind in ("integer", "log_integer")

    @property
    def is_log(self) -> bool:
        return self.kind.startswith("log_")

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high) of a number."""
        bounds = self.uniform or self.log_uniform or self.integer or self.log_integer
        assert bounds is not None, "a choice has no bounds"
        return bounds

    @property
    def examples(self) -> tuple[Value, ...]:
        """Every choice; of a number the two ends."""
        return self.choice if self.choice is not None else self.bounds

    def contains(self, value: Any) -> bool:
        if self.choice is not None:
            return any(same(value, choice) for choice in self.choice)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        whole = not self.is_integer or float(value).is_integer()
        return whole and self.bounds[0] <= value <= self.bounds[1]

    def coordinate(self, value: float) -> float:
        """Position of a number in [0, 1], logarithmic where the dimension is."""
        low, high = (math.log(b) if self.is_log else float(b) for b in self.bounds)
        return ((math.log(value) if self.is_log else float(value)) - low) / (high - low)

    def value_at(self, coordinate: float) -> Value:
        """The number at a coordinate; those outside [0, 1] are put on the edge."""
        low, high = (math.log(b) if self.is_log else float(b) for b in self.bounds)
        position = low + min(1.0, max(0.0, coordinate)) * (high - low)
        value = math.exp(position) if self.is_log else position
        value = min(self.bounds[1], max(self.bounds[0], value))
        return round(value) if self.is_integer else value

    @property
    def shown_condition(self) -> str:
        return " and ".join(
            f"{key} is {' or '.join(str(value) for value in as_list(wanted))}"
            for key, wanted in self.when.items()
        )

    def holds(self, assignment: Mapping[str, Any]) -> bool:
        """Whether the condition is met."""
        return all(
            key in assignment and any(same(assignment[key], allowed) for allowed in as_list(wanted))
            for key, wanted in self.when.items()
        )


KINDS = ("uniform", "log_uniform", "integer", "log_integer", "choice")

Space = Mapping[str, Dimension]


def as_list(wanted: Value | list[Value]) -> list[Value]:
    return wanted if isinstance(wanted, list) else [wanted]


def same(left: Any, right: Any) -> bool:
    """Equal values, where true is not 1."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def in_order(space: Space) -> list[str]:
    """Keys so that each stands after those of its condition. Raises ValueError for a circle."""
    done: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [key for key in waiting if all(other in done for other in space[key].when if other in space)]
        if not ready:
            raise ValueError(
                f"space: the conditions of {', '.join(waiting)} depend on each other in a circle"
            )
        done += ready
        waiting = [key for key in waiting if key not in ready]
    return done


def active(space: Space, assignment: Mapping[str, Any]) -> list[str]:
    """Keys of the space whose condition an assignment meets."""
    return [key for key in in_order(space) if space[key].holds(assignment)]


def grid(space: Space) -> Iterator[Assignment]:
    """Every combination of choices and integers, in the order of the file, each once."""

    def expand(keys: list[str], sofar: Assignment) -> Iterator[Assignment]:
        if not keys:
            yield sofar
            return
        key, *rest = keys
        dimension = space[key]
        if not dimension.holds(sofar):
            yield from expand(rest, sofar)
            return
        values: tuple[Value, ...] = dimension.choice or tuple(
            range(int(dimension.bounds[0]), int(dimension.bounds[1]) + 1)
        )
        for value in values:
            yield from expand(rest, {**sofar, key: value})

    return expand(in_order(space), {})


def corners(space: Space) -> Iterator[Assignment]:
    """Assignments that together show every end and every choice of every dimension.

    For each value shown, the conditions of its dimension are met, and all else stands at its first value.
    """
    order = in_order(space)
    for key in order:
        for value in space[key].examples:
            fixed = {**{other: allowed[0] for other, allowed in required(space, key).items()}, key: value}
            assignment: Assignment = {}
            for other in order:
                if space[other].holds(assignment):
                    assignment[other] = fixed.get(other, space[other].examples[0])
            if key in assignment:
                yield assignment
    for ends in itertools.islice(zip(*(space[key].examples for key in order), strict=False), 2):
        assignment = {}
        for key, value in zip(order, ends, strict=True):
            if space[key].holds(assignment):
                assignment[key] = value
        yield assignment


def required(space: Space, key: str) -> dict[str, list[Value]]:
    """Values of other keys under which `key` is searched, over the whole chain of conditions; a list that
    is empty says that `key` never is. Of a space without circles."""
    wanted: dict[str, list[Value]] = {}
    for other, allowed in space[key].when.items():
        further = required(space, other) if other in space else {}
        for name, values in [*further.items(), (other, as_list(allowed))]:
            known = wanted.get(name, values)
            wanted[name] = [value for value in known if any(same(value, choice) for choice in values)]
    return wanted
