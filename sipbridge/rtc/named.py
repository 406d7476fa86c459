# SPDX-License-Identifier: GPL-3.0-or-later
"""Classes by a name: those of the package, others by entry point. Only what is asked for is imported."""

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any


def all_names(known: Mapping[str, str], group: str) -> list[str]:
    """Of the package, and of all that is installed beside it."""
    return sorted(known.keys() | {entry.name for entry in importlib.metadata.entry_points(group=group)})


def load(name: str, known: Mapping[str, str], group: str, what: str) -> Any:
    """The class of this name. LookupError when there is none, ImportError when it cannot be had."""
    location = known.get(name)
    if location is None:
        for entry in importlib.metadata.entry_points(group=group, name=name):
            location = entry.value
    if location is None:
        raise LookupError(f"no {what} {name!r}: expected one of {', '.join(all_names(known, group))}")
    module, _, attribute = location.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError as error:
        raise ImportError(str(error)) from error
