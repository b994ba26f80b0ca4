"""The report as a page: one HTML file to explore the runs with, which needs nothing else.

Its figures are plain SVG, drawn by a script of our own (`templates/page.*.js`) from the data inside the
page. A plotting library would be 1 to 4 MB in every report, of the 5 MB that one of 1,000 runs may take, and
its figures would have other colours, markers and lines than the paper's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from bench.report.data import ReportData
from bench.report.page_data import PRECISION, as_json, page_data
from bench.report.tables import Table, environment

if TYPE_CHECKING:
    from bench.report.build import Report


def render_page(report: Report, data: ReportData) -> str:
    """Set a report as HTML.

    Args:
        report: its words and tables.
        data: what it was made of; the page's script shows it run by run.

    Returns:
        The page. Everything in it is escaped, and it asks for nothing elsewhere.
    """
    number = report.number

    def html(table: Table) -> Markup:
        return Markup(table.to_html(number[table.name]))  # its own template escapes what is in it

    return (
        environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            html=html,
            number=number,
            left_out=_left_out(data),
            precision=PRECISION,
            data=Markup(as_json(page_data(data, report.paper))),
        )
    )


def _left_out(data: ReportData) -> list[str]:
    """Name the runs that are not in the report, and why."""
    named = ["task", "method", "split", "shots", "seed", "status", "config_hash"]
    runs = [
        ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in named)
        for row in data.left_out.to_dict("records")
    ]
    return [*runs, *(f"{failure.folder}: {failure.reason}" for failure in data.failures)]
