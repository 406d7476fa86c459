# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes configuration for the server from plain Python values."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str | Path):
        return json.dumps(str(value))
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return repr(value)


def dump(tables: Mapping[str, Any]) -> str:
    """A mapping is a table, a list of mappings a list of tables."""
    lines: list[str] = []
    for name, table in tables.items():
        items = table if isinstance(table, list) else [table]
        for item in items:
            lines.append(f"[[{name}]]" if isinstance(table, list) else f"[{name}]")
            lines.extend(f"{key} = {_value(value)}" for key, value in item.items())
            lines.append("")
    return "\n".join(lines)
