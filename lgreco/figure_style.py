"""How pictures look: quiet axes, a few colours that can be told apart."""

from __future__ import annotations

from typing import Any

INK, FAINT, GRID = "#1e293b", "#94a3b8", "#e2e8f0"
REFERENCE_COLOUR = "#475569"
COLOURS = ("#0d9488", "#d97706", "#7c3aed", "#db2777", "#2563eb")

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
"""For matplotlib.rc_context."""
