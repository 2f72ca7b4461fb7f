"""Slides: which images belong together, intervals against worked examples, diameters, and hostile names."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from ssdlib.common.errors import ConfigError
from ssdlib.inference.slides import (
    UNMATCHED,
    Estimate,
    Tally,
    class_table,
    diameter_text,
    mean_interval,
    nice_step,
    parse_group,
    per_100_interval,
    slide_of,
    slide_rows,
    slides_of,
)

NAMES = ("WBC", "RBC", "Platelets")


def record(image="a/1.png", wbc=0, rbc=0, platelets=0, *, side=100.0, at=200.0, quality=(), **more):
    """The record of an image with so many cells, all of one size and in one place."""
    counts = dict(zip(NAMES, (wbc, rbc, platelets), strict=True))
    box = [at, at, at + side, at + side]
    found = [{"box": box, "label": name, "score": 0.9} for name, n in counts.items() for _ in range(n)]
    sizes = {"width": 640, "height": 480, "view": [640, 480]}
    done = {"image": image, "state": "done", "detections": found, "counts": counts, "quality": quality}
    return {**done, **sizes, **more}


def slide(*records):
    tally = Tally(NAMES)
    for one in records:
        tally.add(one)
    return tally.slide("s")


@pytest.mark.parametrize(
    ("image", "pattern", "expected"),
    [
        ("a.png", None, "."),
        ("x/S1/a.png", None, "x/S1"),
        ("x/S1/a.png", r"([^/]+)/[^/]+$", "S1"),
        ("x/S12_03.jpg", r"(S\d+)_", "S12"),
        ("x/T12_03.jpg", r"(S\d+)_", UNMATCHED),
        ("x/03.jpg", r"(S\d+)?", UNMATCHED),
        ("x/<b>_1.jpg", r"/(.*)_", "<b>"),
    ],
)
def test_the_slide_of_an_image(image, pattern, expected):
    assert slide_of(image, pattern and parse_group(pattern)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(", "is not a regular expression"),
        ("(" * 20_000 + ")" * 20_000, "is not a regular expression"),
        ("(a{99999999999999999999})", "is not a regular expression"),
        ("", "has 0 groups"),
        (r"S\d+", "has 0 groups"),
        (r"(?:S)\d+", "has 0 groups"),
        (r"(S)(\d+)", "has 2 groups"),
    ],
)
def test_patterns_that_cannot_be(text, message):
    with pytest.raises(ConfigError, match=rf"--group .*{message}.*--group"):
        parse_group(text)


def test_the_mean_of_fields_by_hand():
    """20, 24 and 22: mean 22, standard deviation 2, t(0.975; 2) = 4.3027, half of it 4.3027 * 2 / sqrt(3)."""
    mean, low, high = mean_interval(3, 66, 20**2 + 24**2 + 22**2)
    assert (mean, round(low, 3), round(high, 3)) == (22, 17.032, 26.968)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([], Estimate(None)),
        ([7], Estimate(7.0)),
        ([4, 4, 4], Estimate(4.0, 4.0, 4.0)),
        ([0, 6], Estimate(3.0, 0, 3 + 12.7062 * 3)),  # t(0.975; 1) = 12.7062; a count is never below 0
    ],
)
def test_means_of_few_fields(counts, expected):
    found = mean_interval(len(counts), sum(counts), sum(n * n for n in counts))
    assert found == (expected if expected.low is None else pytest.approx(expected, rel=1e-5))


def ratio(kind, red):
    fields = np.array([kind, red], float)
    return per_100_interval(len(kind), fields.sum(axis=1), fields @ fields.T)


def test_few_white_cells_in_one_field_have_the_exact_interval():
    """3 of 100: Clopper and Pearson's interval is 0.00623 to 0.08518, hence per 100 red cells p / (1 - p)."""
    value, low, high = ratio([3], [97])
    assert value == pytest.approx(300 / 97)
    exact = stats.binomtest(3, 100).proportion_ci(method="exact")
    assert (round(exact.low, 5), round(exact.high, 5)) == (0.00623, 0.08518)
    assert low == pytest.approx(100 * exact.low / (1 - exact.low))
    assert high == pytest.approx(100 * exact.high / (1 - exact.high))


def test_no_white_cell_is_no_proof_that_there_are_none():
    """0 of 300: at most 1 - 0.025^(1/300), that is 1.22 %."""
    value, low, high = ratio([0, 0, 0], [100, 100, 100])
    top = 1 - 0.025 ** (1 / 300)
    assert (value, low) == (0, 0) and high == pytest.approx(100 * top / (1 - top))


def test_without_red_cells_there_is_no_ratio():
    assert ratio([3], [0]) == ratio([], []) == Estimate(None)


def test_even_fields_say_as_much_as_their_cells_and_uneven_ones_less():
    even, pooled, uneven = ratio([2] * 10, [50] * 10), ratio([20], [500]), ratio([20] + [0] * 9, [50] * 10)
    assert even == pytest.approx(pooled)
    assert uneven.value == even.value and uneven.low < even.low and uneven.high > even.high


def test_uneven_fields_by_hand():
    """Fields of 4 + 6, 0 + 10 and 2 + 8 cells: p = 0.2, residuals 2, -2 and 0 of 30 cells, so the variance is
    3/2 * 8 / 900 = 0.01333 and 0.16 / 0.01333 = 12 cells would vary as much; times (t29 / t2)^2 = 0.2259."""
    cells = 12 * (stats.t.ppf(0.975, 29) / stats.t.ppf(0.975, 2)) ** 2
    assert cells == pytest.approx(12 * 0.22595, rel=1e-3)
    low = stats.beta.ppf(0.025, 0.2 * cells, 0.8 * cells + 1)
    high = stats.beta.ppf(0.975, 0.2 * cells + 1, 0.8 * cells)
    expected = [100 * p / (1 - p) for p in (0.2, low, high)]
    assert ratio([4, 0, 2], [6, 10, 8]) == pytest.approx(expected)


def test_the_interval_holds_for_slides_whose_white_cells_gather():
    """In 400 drawn slides with a true ratio of 5 per 100 it must hold at least 93 % of the time."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(400):
        gathered = generator.gamma(
            1.0, 1.0, 12
        )  # the variance of a field's white cells is far above Poisson's
        kind, red = generator.poisson(gathered * 1.5), generator.poisson(30, 12)
        _, low, high = ratio(kind, red)
        held += low <= 5 <= high
    assert held / 400 >= 0.93


def test_figures_of_a_slide():
    found = slide(
        record(wbc=1, rbc=20, platelets=2, quality=["too dark"]),
        record(rbc=24, quality=["too dark", "unsure"]),
        record(wbc=2, rbc=22),
        {"image": "a/4.png", "state": "unreadable", "message": "damaged"},
    )
    assert (found.fields, found.unreadable, found.noted) == (3, 1, 2)
    assert found.counts == {"WBC": 3, "RBC": 66, "Platelets": 2}
    assert found.notes == {"too dark": 2, "unsure": 1}
    assert found.per_field["RBC"].to_text(".1f") == "22.0 (17.0 to 27.0)"
    assert found.per_100["WBC"].value == pytest.approx(300 / 66) and set(found.per_100) == {
        "WBC",
        "Platelets",
    }
    assert found.border == ("all",)
    assert class_table(found).rows[1] == ["RBC", "66", "22.0 (17.0 to 27.0)", ""]


def test_diameters_are_of_red_cells_clear_of_the_border():
    """90, 100 and 110 pixels: the standard deviation is 10, so the coefficient of variation is 10 %."""
    cells = [record(rbc=1, side=side) for side in (90, 100, 110)]
    cut = [record(rbc=1, at=at) for at in (0, 380)]  # at the left and upper, at the lower border
    found = slide(*cells, *cut, record(wbc=1, side=200)).diameters
    assert (found.unit, found.cells, found.low, found.median, found.high) == ("px", 3, 90, 100, 110)
    assert found.variation == pytest.approx(0.1)
    assert sum(found.bars) == 3 and found.edges[0] <= 90 and found.edges[-1] > 110


def test_the_mean_of_width_and_height_is_the_diameter():
    one = record(rbc=1)
    one["detections"][0]["box"] = [100, 100, 180, 220]
    assert slide(one).diameters.median == 100
    assert slide(one).diameters.variation is None
    assert slide({**one, "measured_um": 0.072}).diameters.median == 7.2


def test_micrometers_need_the_scale_of_every_field():
    known, other = record(rbc=1, measured_um=0.07), record(rbc=1, measured_um=0.08)
    both = slide(known, other)
    assert both.um_per_pixel == (0.07, 0.08)
    assert (both.diameters.unit, both.diameters.low, both.diameters.high) == ("µm", 7.0, 8.0)
    mixed = slide(known, record(rbc=1, measured_um=None))
    assert mixed.um_per_pixel is None and (mixed.diameters.unit, mixed.diameters.cells) == ("px", 2)


def test_nothing_is_a_slide_too():
    found = slide()
    assert (found.fields, found.diameters, found.per_field["RBC"]) == (0, None, Estimate(None))
    assert "none was measured" in diameter_text(found)


def test_rows_and_order():
    records = [record("b/1.png", rbc=2, border="two-sides"), record("a/1.png"), record("b/2.png", rbc=4)]
    slides, together = slides_of(records, NAMES)
    assert [one.name for one in slides] == ["b", "a"] and together.counts["RBC"] == 6
    header, *rows = slide_rows(slides, NAMES)
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["RBC"] for row in rows] == [6, 0] and rows[0]["RBC_per_field"] == 3.0
    assert rows[0]["border"] == "two-sides and all" and rows[1]["WBC_per_100_RBC"] is None
    assert (rows[0]["diameter_median"], rows[1]["diameter_median"]) == (100, None)


def test_other_classes_have_no_red_cells_to_be_counted_by():
    tally = Tally(("yeast",))
    tally.add({**record(), "counts": {"yeast": 3}})
    header, row = slide_rows([tally.slide("s")], ("yeast",))
    assert not any("per_100" in name for name in header) and dict(zip(header, row, strict=True))["yeast"] == 3


@pytest.mark.parametrize(("least", "step"), [(1, 1), (1.01, 2), (0.21, 0.5), (0.6, 1), (70, 100)])
def test_nice_steps(least, step):
    assert math.isclose(nice_step(least), step)


def test_memory_stays_flat():
    """A slide of 4,000 fields needs no more than one of 400."""
    peaks = []
    for count in (400, 4000):
        tracemalloc.start()
        slides_of((record(f"a/{n}.png", rbc=5, side=90 + n % 20) for n in range(count)), NAMES)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 20_000
