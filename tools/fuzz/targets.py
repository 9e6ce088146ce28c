"""All targets by name; their shares of the cases are such that slow ones take no longer."""

from __future__ import annotations

from tools.fuzz import pictures, runs, settings, stored, tables

TARGETS = {
    **runs.TARGETS,
    **tables.TARGETS,
    **pictures.TARGETS,
    **settings.TARGETS,
    **stored.TARGETS,
}
