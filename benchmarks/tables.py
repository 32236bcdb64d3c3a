"""Tables of benchmarks: a mean with its range as text, and one table as Markdown and as LaTeX."""

import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """What is shown, whatever the format; cells are plain text."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    """Columns from the left that hold words; the others hold numbers."""


def mean_and_range(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and in brackets the smallest and the largest where there are several."""
    low, high = min(values), max(values)
    spread = f" ({low:.{digits}f}–{high:.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def markdown(table: Table) -> str:
    """The table with its caption above."""
    marks = ["---" if i < table.text_columns else "---:" for i in range(len(table.heads))]
    lines = [f"| {' | '.join(cells)} |" for cells in (table.heads, marks, *table.rows)]
    return "\n".join([f"**{table.caption}**", "", *lines, ""])


def latex(table: Table, label: str) -> str:
    """A floating table for the packages booktabs and graphicx, no wider than the line."""
    columns = "l" * table.text_columns + "r" * (len(table.heads) - table.text_columns)
    rows = [f"    {' & '.join(map(_escaped, row))} \\\\" for row in (table.heads, *table.rows)]
    return "\n".join(
        [
            "\\begin{table}[t]",
            "  \\centering",
            f"  \\caption{{{_escaped(table.caption)}}}",
            f"  \\label{{{label}}}",
            "  \\resizebox{\\linewidth}{!}{%",
            f"  \\begin{{tabular}}{{{columns}}}",
            "    \\toprule",
            rows[0],
            "    \\midrule",
            *rows[1:],
            "    \\bottomrule",
            "  \\end{tabular}}",
            "\\end{table}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    for found, written in (("–", "--"), ("±", r"$\pm$"), ("×", r"$\times$"), ("~", r"\textasciitilde ")):
        escaped = escaped.replace(found, written)
    return escaped
