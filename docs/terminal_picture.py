"""Turn what a terminal showed into a picture: ``tmux capture-pane -ep | python docs/terminal_picture.py FILE.svg``."""

import sys

from rich.console import Console
from rich.text import Text


def main() -> None:
    """Read ANSI text from standard input and write it as SVG."""
    lines = [Text.from_ansi(line) for line in sys.stdin.read().rstrip().splitlines()]
    console = Console(record=True, width=max(line.cell_len for line in lines), file=sys.stderr, force_terminal=True)
    for line in lines:
        console.print(line, no_wrap=True)
    console.save_svg(sys.argv[1], title="mmfa-study", clear=False)


if __name__ == "__main__":
    main()
