from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from clipkit import page
from clipkit.charts import interval_chart, line_chart


def test_a_page_is_one_file_with_everything_escaped(tmp_path: Path) -> None:
    report = page.Page("a <b> title", "lead & more")
    report.section("<script>", "text")
    report.figures({"accuracy <1>": "93 %"})
    report.table(["name", "value"], [["<i>", "1"]])
    report.code("a < b")
    report.row("query <q>", [page.Hit(image=Image.new("RGB", (4, 4)), label="0.5", is_right=True)])
    report.picture(Image.new("L", (2, 2)), "a <picture>")
    path = tmp_path / "report.html"
    report.write(path)
    text = path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    for raw in ("a <b>", "<script>", "<i>", "<q>", "<picture>", "a < b"):
        assert raw not in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert text.count("data:image/png;base64,") == 2


def test_photos_are_smooth_and_small_pictures_show_their_pixels(tmp_path: Path) -> None:
    report = page.Page("t", "l")
    sizes = [(64, 64), (65, 20)]
    report.row("q", [page.Hit(image=Image.new("RGB", size), label="", is_right=True) for size in sizes])
    report.write(tmp_path / "r.html")
    assert re.findall(r'<img class="(\w*)"', (tmp_path / "r.html").read_text()) == ["small", ""]


def test_a_heat_table_marks_cells_and_leaves_gaps_empty(tmp_path: Path) -> None:
    report = page.Page("t", "l")
    report.heat_table([[1.0, float("nan")], [0.25, 0.0]], ["r0", "r1"], ["c0", "c1"], {(1, 0)})
    report.write(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert re.search(r'<td class="marked"[^>]*>25%</td>', text)
    assert ">100%<" in text
    assert ">0%<" in text
    assert "<td></td>" in text
    assert text.count('class="marked"') == 1


def test_points_of_a_line_chart_by_hand() -> None:
    chart = line_chart("loss", {"loss": [(0, 5.0), (50, 2.5), (100, 0.0)]}, x_label="step")
    (points,) = re.findall(r'points="([^"]+)"', chart)
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    # x from 46 to 428; y axis to 5 from 30 (top) to 224 (bottom).
    assert places == [(46.0, 30.0), (237.0, 127.0), (428.0, 224.0)]
    labels = re.findall(r'text-anchor="end">([\d.]+)<', chart)
    assert labels == [*"012345", "100"]


@pytest.mark.parametrize("curves", [{}, {"empty": []}, {"zero": [(0, 0.0)]}])
def test_a_chart_of_nothing_is_drawn(curves: dict[str, list[tuple[float, float]]]) -> None:
    assert line_chart("t", curves, x_label="x").endswith("</svg>")


def test_intervals_of_shares_by_hand() -> None:
    chart = interval_chart("acc", [("a <model>", 0.5, 0.25, 0.75), ("b", 0.0, 0.0, 0.1)], mark=0.1)
    # The scale goes from x = 230 to x = 580.
    assert '<circle cx="405.0" cy="21.0"' in chart
    assert '<line x1="317.5" x2="492.5" y1="21.0" y2="21.0"' in chart
    assert '<line x1="265.0" x2="265.0"' in chart
    assert "a &lt;model&gt;" in chart
    assert "50.0%" in chart


def test_subsections_and_notes_are_escaped(tmp_path: Path) -> None:
    report = page.Page("title", "lead")
    report.subsection("a < b", "c & d")
    report.note("<e>")
    report.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<h3>a &lt; b</h3>" in text
    assert "c &amp; d" in text
    assert "&lt;e&gt;" in text
