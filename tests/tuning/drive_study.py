"""Runs the study of a JSON file in a process of its own, so that a test can kill it."""

import json
import sys
from pathlib import Path

from darkarc import config as configuration
from darkarc.data.store import Store
from darkarc.tuning import parse_study, run_study, runs


def main() -> None:
    facts = json.loads(Path(sys.argv[1]).read_text())
    config = configuration.parse(facts["config"])
    runs.FLUSH_EVERY_S = 0.1  # so that every kill finds some epochs sent and others not
    result = run_study(
        config,
        parse_study(facts["study"], config),
        Store.open(facts["prepared"]),
        work=Path(facts["work"]),
        resume=True,
        address=facts["address"],
        progress=False,
    )
    Path(facts["out"]).write_text(json.dumps({"document": result.document, "run_id": result.run_id}))


if __name__ == "__main__":
    main()
