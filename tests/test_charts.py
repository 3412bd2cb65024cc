import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibert.pages import charts
from minibert.pages import page as pages
from minibert.pages.charts import Axis, Bar, Group, Line, Mark, bar_chart, line_chart

HOSTILE = "<script>alert('1')</script> & \"quotes\" שלום 🦊"
numbers = st.floats(-1e6, 1e6)


def bars(groups, unit=""):
    return ElementTree.fromstring(bar_chart("Title", ("one", "two"), groups, unit))


def lines(some, marks=(), **options):
    labels = {"x_label": "x", "y_label": "y"}
    return ElementTree.fromstring(
        line_chart("Title", "What is seen", some, marks, **labels, **options)
    )


def points(picture, number):
    line = picture.findall("polyline")[number]
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def texts(picture):
    return [element.text for element in picture.iter("text")]


@given(numbers, st.floats(1e-3, 1e6))
def test_ticks_are_few_round_evenly_spaced_and_inside(low, width):
    axis = Axis(low, low + width, 0, 100)
    ticks = axis.ticks
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 * abs(low) <= tick <= low + width * (1 + 1e-9) for tick in ticks)
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    assert all(math.isclose(b - a, step, rel_tol=1e-3) for a, b in itertools.pairwise(ticks))
    assert float(f"{step:.0e}"[0]) in (1, 2, 5)


def test_an_axis_is_linear_and_moves_what_lies_outside_to_its_ends():
    axis = Axis(-10, 10, 200, 100)
    assert [axis(value) for value in (-10, 0, 5, 10)] == [200, 150, 125, 100]
    assert axis(-math.inf) == axis(-11) == 200
    assert axis(math.inf) == axis(11) == 100


def test_a_bar_is_as_long_as_its_value_and_its_error_bar_as_its_interval():
    groups = [
        Group("all", 1234, [Bar(50, 40, 60), Bar(80, 70, 85)]),
        Group("some", 5, [Bar(0, 0, 10), Bar(100, 90, 100)]),
    ]
    picture = bars(groups, unit=" %")
    full = float(picture.findall("rect")[3].get("width"))
    assert [float(bar.get("width")) / full for bar in picture.findall("rect")] == pytest.approx(
        [0.5, 0.8, 0, 1], abs=1e-3
    )
    begin = float(picture.find("rect").get("x"))
    errors = [line for line in picture.findall("line") if line.get("class") == "error"]
    ends = [(float(line.get(end)) - begin) / full for line in errors for end in ("x1", "x2")]
    assert ends == pytest.approx([0.4, 0.6, 0.7, 0.85, 0, 0.1, 0.9, 1], abs=1e-3)
    tips = [bar.find("title").text for bar in picture.findall("rect")]
    assert tips[1] == "all: two 80.0 %, 70.0 to 85.0"
    assert all(tip in picture.find("desc").text for tip in tips)
    assert {"all", "n = 1,234", "some", "n = 5", "one", "two", "50.0"} <= set(texts(picture))


def test_no_two_bars_overlap():
    groups = [Group(str(n), n, [Bar(1, 0, 2)] * 3) for n in range(4)]
    picture = ElementTree.fromstring(bar_chart("Title", "abc", groups, ""))
    tops = [float(bar.get("y")) for bar in picture.findall("rect")]
    assert min(b - a for a, b in itertools.pairwise(tops)) > charts.BAR
    assert tops[-1] + charts.BAR < float(picture.get("viewBox").split()[3])


def test_lines_and_marks_stand_where_the_ticks_say():
    line = Line("rising", [(0, 0), (1, 50), (2, 100)])
    mark = Mark(1, 50, "the middle", low=40, high=60)
    picture = lines([line], [mark], x_range=(0, 2), y_range=(0, 100))
    grid = [each for each in picture.findall("line") if each.get("class") == "grid"]
    xs = sorted({float(each.get("x1")) for each in grid if each.get("x1") == each.get("x2")})
    ys = sorted({float(each.get("y1")) for each in grid if each.get("y1") == each.get("y2")})
    assert points(picture, 0) == [
        (xs[0], ys[-1]),
        ((xs[0] + xs[-1]) / 2, (ys[0] + ys[-1]) / 2),
        (xs[-1], ys[0]),
    ]
    circle = picture.find("circle")
    assert (float(circle.get("cx")), float(circle.get("cy"))) == points(picture, 0)[1]
    assert circle.find("title").text == "the middle"
    (error,) = [each for each in picture.findall("line") if each.get("class") == "error"]
    height = ys[-1] - ys[0]
    assert float(error.get("y1")) - float(error.get("y2")) == pytest.approx(0.2 * height, abs=0.1)
    assert {"0.5", "1.5", "20", "100", "x", "y", "rising"} <= set(texts(picture))


def test_a_negative_tick_has_a_true_minus():
    assert "−5" in texts(lines([], x_range=(-10, 10)))


def test_a_long_legend_takes_several_rows_within_the_picture():
    names = ["a name that is rather long", "another one just as long", "short", "and a last one"]
    picture = lines([Line(name, [(0, 0), (1, 1)]) for name in names])
    rows = {}
    for element in picture.findall("text"):
        if element.text in names:
            end = float(element.get("x")) + charts.CHARACTER * len(element.text)
            assert end <= charts.WIDTH
            rows.setdefault(element.get("y"), []).append(element.text)
    assert sorted(itertools.chain(*rows.values())) == sorted(names)
    assert len(rows) > 1


@given(st.lists(st.tuples(numbers, numbers)))
def test_thinning_keeps_every_point_within_reach_and_the_last(some):
    kept = list(charts.thin(some))
    assert kept[:1] == some[:1]
    assert kept[-1:] == some[-1:]
    assert all(min(math.dist(point, k) for k in kept) < charts.CLOSEST for point in some)


def test_thinning_bounds_the_size_of_a_line():
    count = 200_000
    many = [(i / count, i % 2 / 1000) for i in range(count)]
    assert len(line_chart("", "", [Line("", many)], x_label="", y_label="")) < 30_000


@given(st.lists(st.tuples(st.integers(0, 9), numbers), min_size=1))
def test_steps_are_level_or_upright_and_pass_through_every_point(some):
    corners = list(charts.steps(some))
    assert all(a == c or b == d for (a, b), (c, d) in itertools.pairwise(corners))
    assert corners[::2] == some


def test_hostile_words_are_escaped_everywhere():
    pictures = [
        lines([Line(HOSTILE, [(0, 0)])], [Mark(0, 0, HOSTILE)]),
        ElementTree.fromstring(
            bar_chart(HOSTILE, (HOSTILE, "b"), [Group(HOSTILE, 1, [Bar(1, 0, 2)] * 2)], HOSTILE)
        ),
        ElementTree.fromstring(line_chart(HOSTILE, HOSTILE, [], x_label=HOSTILE, y_label=HOSTILE)),
    ]
    for picture, times in zip(pictures, (2, 13, 4), strict=True):
        assert picture.find(".//script") is None
        assert "".join(picture.itertext()).count(HOSTILE) == times


def test_a_picture_has_a_role_a_name_and_a_description():
    picture = lines([])
    assert picture.get("role") == "img"
    assert [child.tag for child in picture][:2] == ["title", "desc"]
    assert picture.find("desc").text == "What is seen"


def test_a_page_keeps_its_title_and_body_and_can_be_written():
    page = pages.page(HOSTILE, ["<p>a half \ud83e pair</p>"], "b { color: red }")
    assert page.startswith("<!DOCTYPE html>\n")
    assert "<script" not in page
    assert "<p>a half ? pair</p>" in page
    assert re.search(r"<style>.*b \{ color: red \}</style>", page, re.DOTALL)
    page.encode("utf-8")


def test_a_table_names_its_rows_and_columns_and_is_nothing_without_rows():
    assert list(pages.table("Caption", [])) == []
    table = ElementTree.fromstring(
        "".join(pages.table("Caption", [(HOSTILE, ["1", HOSTILE])], ["kind", "n", "more"]))
    )
    assert [head.get("scope") for head in table.iter("th")] == ["col"] * 3 + ["row"]
    assert [cell.text for cell in table.iter("td")] == ["1", HOSTILE]
