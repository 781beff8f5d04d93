"""Report and model card: self-contained, escaped, complete."""

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from darkarc.config import Config
from darkarc.data.store import Store
from darkarc.evaluation import describe_data, model_card
from darkarc.evaluation.report import Illustration, report_html
from darkarc.evaluation.style import new_figure, style, to_png
from darkarc.evaluation.wording import MEANINGS, as_published, number
from darkarc.models import RegressorSpec
from darkarc.serving.onnx_file import outputs_of

ROW = {"low": -24.0, "high": -23.0, "n": 5}
NAMES = ("mae_dex", "rmse_dex", "bias_dex", "nll", "coverage_50", "coverage_68", "coverage_90", "coverage_95",
         "sharpness_dex", "pull_mean", "pull_std", "pit_ks", "tarp_ks")  # fmt: skip


def metrics_of(**changes: Any) -> dict[str, Any]:
    row = ROW | dict.fromkeys(NAMES, 0.25) | {"mae_dex_se": 0.01}
    empty = {"low": -23.0, "high": -22.0, "n": 0} | dict.fromkeys(NAMES)
    return {
        "n_test": 9, "n_scored": 5, "mae_dex": 0.25, "coverage_68": 0.7, "class_auc": 0.9, "nll": None,
        "constant_guess_mae_dex": 0.5, "prior_bound_share": 0.4, "standard_error": {"mae_dex": 0.0123},
        "by_mass": [row, empty], "by_tercile": [row], "warnings": [],
        "missing": [{"metric": "nll", "reason": "1 of 5 true values have no posterior density at all"}],
        "published": [
            {"name": "Net<18>", "author": "A|B", "protocol": "long", "source": "somewhere", "mae_dex": 0.3,
             "not_comparable": ""}
        ],
    } | changes  # fmt: skip


def spec() -> RegressorSpec:
    return RegressorSpec(
        targets={"log10_axion_mass_ev": (-24.0, -22.0)},
        shape=(64, 64),
        model=Config().model.model_dump(),
        statistics={"mean": 1.0, "std": 2.0},
        instrument="model_iii",
    )


def page(
    metrics: dict[str, Any], data: dict[str, str] | None = None, lineage: dict[str, str] | None = None
) -> str:
    with style():
        png = to_png(new_figure(1.5, 1.0))
    return report_html(
        target="log10_axion_mass_ev",
        prior=(-24.0, -22.0),
        metrics=metrics,
        data=data or {"Instrument": "<script>alert(1)</script>", "Shape": "64 × 64 pixels"},
        regressor={"Backbone": "small & quick"},
        configuration={"targets.x": [-24.0, -22.0], "seed": 0},
        illustrations=[Illustration("one", 'A "title"', "1 < 2", png)],
        lineage=lineage,
    )


class Checker(HTMLParser):
    """Collects what a browser would fetch, and that every tag is closed in order."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.widths: list[str | None] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.widths.append(dict(attrs)["width"])
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_fetches_nothing() -> None:
    checker = Checker()
    text = page(metrics_of())
    checker.feed(text)
    assert checker.open == []
    assert all(value.startswith("data:image/png;base64,") for value in checker.fetched)
    assert len(checker.fetched) == 1 and checker.widths == ["180"]
    assert "script" not in checker.tags and "link" not in checker.tags and "url(" not in text


def test_text_is_escaped() -> None:
    text = page(metrics_of(warnings=["a < b & c"]))
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert "Net&lt;18&gt;" in text and "small &amp; quick" in text and "a &lt; b &amp; c" in text
    assert "A &quot;title&quot;" in text


def test_page_says_the_numbers_their_errors_and_what_is_missing() -> None:
    text = page(metrics_of())
    assert "0.2500 ± 0.0123" in text and "0.2500 ± 0.0100" in text
    assert "1 of 5 true values have no posterior density at all" in text
    assert "−24.00\u00a0to\u00a0−23.00" in text
    assert "PIT distance" in text and "TARP distance" in text
    assert 'class="warning"' not in text
    assert "the test images need not be the same" in text
    assert page(metrics_of()) == text and "Lineage" not in text
    assert "<tr><th>Git commit</th><td>a&lt;b</td></tr>" in page(metrics_of(), lineage={"Git commit": "a<b"})


def test_incomparable_published_numbers_say_so_on_page_and_card() -> None:
    published = [metrics_of()["published"][0] | {"not_comparable": "other noise"}]
    assert "Not comparable with ours: other noise" in page(metrics_of(published=published))
    assert "Not comparable: other noise" in model_card(spec(), metrics_of(published=published))


def test_card_holds_data_lineage_metrics_and_limits(prepared: Store) -> None:
    data = describe_data(prepared)
    card = model_card(
        spec(), metrics_of(warnings=["look out"]), data=data, lineage={"Git commit": "abc"}, title="Version 3"
    )
    assert card.startswith("# Version 3\n")
    for part in ("## Data", "## Test results", "### By true value", "## Warnings", "## Limits", "## Lineage"):
        assert f"\n{part}\n" in card
    assert "| Mean absolute error (dex) | 0.2500 ± 0.0123 |" in card
    assert "| -23.00 to -22.00 | 0 | – |" in card
    assert f"| Digest | {prepared.digest} |" in card and "| Git commit | abc |" in card
    assert "A\\|B" in card and "40% of the test posteriors" in card
    assert card == model_card(
        spec(), metrics_of(warnings=["look out"]), data=data, lineage={"Git commit": "abc"}, title="Version 3"
    )


def test_card_without_an_evaluation_says_so() -> None:
    card = model_card(spec())
    assert "Not evaluated" in card and "## Limits" in card and "64 × 64" in card


def test_card_names_every_output_that_the_file_has() -> None:
    for novelty, members in (("none", 1), ("full", 1), ("mixture", 3)):
        model = Config().model.model_copy(update={"novelty": novelty}).model_dump()
        described = replace(spec(), model=model, members=members)
        card = model_card(described)
        interface = card.partition("## Input and output")[2].partition("```")[0]
        for name in ("density", "median", "quantiles", "class_probability", "novelty", "std_between"):
            assert (f"`{name}`" in interface) == (name in outputs_of(described)), name


def test_data_facts_count_every_split(prepared: Store) -> None:
    facts = describe_data(prepared)
    assert facts["Images in train"] == "400 (300 axion, 60 cdm, 40 no_sub)"
    assert facts["Images in validation"] == "0"
    assert facts["Preset"] == "model_iii" and facts["Noise"] == "published"


@pytest.mark.parametrize(("value", "text"), [(0.3, "0.30"), (0.1262, "0.1262"), (1.0, "1.00")])
def test_published_digits(value: float, text: str) -> None:
    assert as_published(value) == text


def test_numbers_and_their_meanings() -> None:
    assert (number(None), number(0.12345), number(3)) == ("–", "0.1235", "3")
    assert all(len(entry) == 3 and entry[0] for entry in MEANINGS.values())
