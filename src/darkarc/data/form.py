"""Of what kind a store's images are: which instrument model, which noise, which distances."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from darkarc.data.store import Manifest
from darkarc.simulation import PRESETS


@dataclass(frozen=True)
class DataForm:
    """Of what kind a data set's images are; None where it is not known."""

    preset: str | None
    noise: str | None
    distances: str | None


def data_form(manifest: Manifest) -> DataForm:
    """Preset, noise and distances of a raw or prepared store's images; None for what is not known.

    DeepLense's files name their model in the folders and hold the published form.
    """
    if manifest.origin == "deeplense":
        known = manifest.instrument in PRESETS
        return (
            DataForm(manifest.instrument, "published", "deeplense") if known else DataForm(None, None, None)
        )
    parameters: Mapping[str, Any] = manifest.parameters
    source = parameters["raw"]["parameters"] if "raw" in parameters else parameters
    recipe = source.get("simulate", {})
    return DataForm(recipe.get("preset"), recipe.get("noise"), recipe.get("distances"))
