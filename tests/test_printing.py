"""What is printed: names as they are, and nothing of them that a terminal would obey."""

import re
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

import jacobinerf_ns
from jacobinerf_ns.progress import PlainConsole, progress_bar, track

STEERING = "a\x1b]0;title\x07b\x9b31mc\r\x08d"
HARMLESS = "a]0;titleb31mcd"


@pytest.mark.parametrize("printed", [STEERING, Text(STEERING), Text.assemble("", (STEERING, "bold red"))])
def test_lines_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str], printed: str | Text) -> None:
    PlainConsole().print(printed, soft_wrap=True)
    assert capsys.readouterr().out == f"{HARMLESS}\n"


def test_tables_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", STEERING)
    table.add_row(STEERING, Text(STEERING))
    PlainConsole().print(table)
    printed = capsys.readouterr().out
    assert printed.count(HARMLESS) == 3
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", printed)


def test_progress_bars_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(2), f"{STEERING} [/nothing]"):
        pass
    assert HARMLESS in (printed := capsys.readouterr().out)
    assert "\x07" not in printed


@pytest.mark.parametrize("name", ["a [/b] c", "[red]a", ":smile: [", "[link=http://a]b[/link]"])
def test_brackets_and_colons_of_a_name_mean_nothing(capsys: pytest.CaptureFixture[str], name: str) -> None:
    PlainConsole().print(name, soft_wrap=True)
    with progress_bar() as progress:
        progress.add_task(name, total=1)
    assert capsys.readouterr().out.count(name) == 2


def test_everything_is_printed_through_it() -> None:
    """nerfstudio's console reads markup, and rich's own passes control characters on."""
    package = Path(jacobinerf_ns.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text()
        if path.name != "progress.py":
            assert not re.search(r"rich\.console|rich\.print|(?<!Plain)Console\(", text), path
        own = "rich_utils" not in text
        for call in re.findall(r"(?<![.\w])(?:CONSOLE\.)?print\(.*\{.*", text):
            assert "visible(" in call or (own and call.startswith("CONSOLE")) or path.name == "ffmpeg.py", (path, call)
