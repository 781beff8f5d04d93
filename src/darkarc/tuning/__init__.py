"""Studies to winners: everything that knows Ray Tune. Search spaces are data, trials are our own training."""

from darkarc.tuning.combinations import refusals
from darkarc.tuning.runner import StudyInterrupted, StudyResult, conduct, run_study, tune_stage
from darkarc.tuning.study import Study, StudyError, load_study, parse_study
from darkarc.tuning.winner import apply_winner, winner_tags, write_winner

__all__ = [
    "Study",
    "StudyError",
    "StudyInterrupted",
    "StudyResult",
    "apply_winner",
    "conduct",
    "load_study",
    "parse_study",
    "refusals",
    "run_study",
    "tune_stage",
    "winner_tags",
    "write_winner",
]
