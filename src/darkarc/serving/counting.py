"""A progress bar for streams of images, whose number is not known beforehand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counting(verb: str, progress: bool) -> Iterator[Callable[[int], None]]:
    """What it gives is to be called with the number of images that were dealt with since the last call."""
    from rich.progress import Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn(verb + " {task.completed:.0f} images"),
        TaskProgressColumn(show_speed=True),
        TimeElapsedColumn(),
    )
    with Progress(*columns, disable=not progress, transient=True) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda n: bar.advance(task, n)
