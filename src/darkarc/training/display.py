"""What a person sees of a training: a bar on a terminal, one line an epoch elsewhere."""

import sys
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from darkarc.config import in_unit


class Display(Protocol):
    def begin(self, n_steps: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def epoch(self, row: dict[str, float]) -> None: ...

    def say(self, message: str) -> None: ...


class Silent:
    """Shows nothing."""

    def begin(self, n_steps: int) -> None:
        """No bar."""

    def advance(self, step: int) -> None:
        """No bar."""

    def epoch(self, row: dict[str, float]) -> None:
        """No line."""

    def say(self, message: str) -> None:
        """Warnings are worth a line even so."""
        print(message, file=sys.stderr)


class Terminal:
    """A rich progress bar over all steps on a terminal; one line an epoch into a file or pipe.

    target: the first one, whose error is shown.
    """

    def __init__(self, n_epochs: int, target: str, what: str = "training") -> None:
        self.console = Console(stderr=True)
        self.n_epochs, self.target = n_epochs, target
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(what, total=None)

    def __enter__(self) -> "Terminal":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def begin(self, n_steps: int) -> None:
        self.bar.update(self.task, total=n_steps)

    def advance(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def epoch(self, row: dict[str, float]) -> None:
        error = in_unit(f"{row['val_mae_dex']:.4f}", self.target)
        text = (
            f"epoch {row['epoch']:.0f}/{self.n_epochs}  loss {row['train_loss']:.3f}  "
            f"val loss {row['val_loss']:.3f}  val MAE {error}"
        )
        if self.console.is_terminal:
            self.bar.update(self.task, description=text)
        else:
            print(text, file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False, soft_wrap=True)
