"""From labels to data: the pairs that a person decided, the preferred answer as the chosen one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from localdpo.data.formats.write import explicit
from localdpo.data.rows import read_rows
from localdpo.data.sources import open_source
from localdpo.data.types import Pair
from localdpo.prefs.label import Labelling
from localdpo.prefs.rewrite import check_output, json_lines


def write_labelled(
    source: str, state: Labelling, out: Path, *, format_name: str | None = None, force: bool = False
) -> int:
    """Write the decided pairs of `source`, in its order, as rows of prompt, chosen and rejected; how many.

    A column `label` holds the pair's row, whether the label agrees with the data, and flag and note if there
    are any. Raises UserError for a file that is there already.
    """
    check_output(out, force=force)
    decided = state.preferences()
    written = 0
    with json_lines(out) as put:
        for row in read_rows(open_source(source), "pairs", None, format_name):
            number = row.rows[0] + 1
            side = decided.get(number)
            if side is None or not isinstance(row.result, Pair):
                continue
            pair = row.result
            if side == "rejected":
                pair = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
            for record in explicit(pair, {"label": _label(state, number, side)}).records:
                put(record)
            written += 1
    return written


def _label(state: Labelling, row: int, side: str) -> dict[str, Any]:
    label: dict[str, Any] = {"row": row, "agrees": side == "chosen"}
    if row in state.flags:
        label["flagged"] = True
    if row in state.notes:
        label["note"] = state.notes[row]
    return label
