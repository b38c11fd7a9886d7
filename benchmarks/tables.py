"""What the commands that print tables share: Markdown tables, and figures in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers stand at the right, and None is a dash."""
    texts = [[_text(value) for value in row] for row in rows]
    right = [all(text[:1].isdigit() or text == "-" for text in column) for column in zip(*texts)]
    widths = [max(map(len, column)) for column in zip(columns, *texts)]
    lines = [list(columns), ["-" * (width - 1) + (":" if r else "-") for width, r in zip(widths, right)], *texts]
    cells = (
        [text.rjust(width) if r else text.ljust(width) for text, width, r in zip(line, widths, right)] for line in lines
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def save(path: Path, figures: Any) -> None:
    """Write figures as JSON: the file is the old one or the whole new one, never half of it."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
