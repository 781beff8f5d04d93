"""`darkarc doctor`: what of the set-up would fail, lose or leak something, and what to do about each."""

from darkarc.doctor.checkup import CHECKS, examine
from darkarc.doctor.findings import LEVELS, Finding

__all__ = ["CHECKS", "LEVELS", "Finding", "examine"]
