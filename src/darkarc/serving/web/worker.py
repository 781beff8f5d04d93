"""The process that reads uploaded files and answers: one JSON line in, one out.

    python -m darkarc.serving.web.worker '{"model": …, "gate": …, "max_images": …, "memory_mb": …}'

It ends with its standard input. After the model is loaded it can write no file, and gets no more memory than
it was given: a file that wants more is refused, or takes this process with it, and not the server.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from darkarc.serving.loading import load
from darkarc.serving.web.answers import FileAnswers, model_facts, refused_file, rest_of, table_text, warm_up

MEMORY = "needs more memory than a worker has"


def main(settings: dict[str, Any]) -> None:
    """Say what the model is, then answer until the standard input ends."""
    # Ctrl-C is for the server; it closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = _own_output()
    try:
        regressor = load(settings["model"], threads=settings["threads"])
        facts = model_facts(regressor, settings["name"], settings["gate"])
        warm_up(regressor)
    except Exception as error:
        _say(answers, {"error": str(error)})
        raise SystemExit(2) from error
    files = FileAnswers(regressor, settings["gate"], settings["max_images"])
    _limit(settings["memory_mb"])
    _say(answers, {"facts": facts})
    for line in sys.stdin:
        _say(answers, _answer(files, json.loads(line)))
    os._exit(0)  # the libraries take their time to leave, and there is nothing to put in order


def _answer(files: FileAnswers, asked: list[dict[str, str]]) -> dict[str, Any]:
    answered, log = [], []
    for upload in asked:
        if upload["reason"]:
            found = refused_file(upload["name"], upload["reason"])
        else:
            try:
                found = files.of_file(Path(upload["path"]), upload["name"])
            except MemoryError:
                found = refused_file(upload["name"], MEMORY)
            except Exception as error:
                # The log may be a file, and this process can write none: the server does.
                log.append(f"{upload['name']!r}: {error!r}")
                found = refused_file(upload["name"], "the answer failed; the server's log says more")
        for image in found["images"]:
            image["line"] = table_text([image["row"]], header=False)
        left_out = [rest_of(upload["name"], files.max_images)] if found["more"] else []
        found["rest"] = table_text(left_out, header=False)
        answered.append({"name": upload["name"], **found})
    return {"files": answered, "log": log}


def _own_output() -> TextIO:
    """The pipe to the server; whatever a library prints goes to the log instead."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _say(channel: TextIO, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message, allow_nan=False) + "\n")
    channel.flush()


def _limit(memory_mb: int) -> None:
    """No file of more than nothing, no core dump, and so much memory beyond what is in use now."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    in_use = Path("/proc/self/statm")
    if in_use.exists():  # Linux; macOS does not keep to such a limit
        most = int(in_use.read_text().split()[0]) * resource.getpagesize() + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
