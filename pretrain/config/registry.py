"""Names in a recipe → classes."""

from __future__ import annotations

import importlib
from typing import Any

from data_tools.errors import UserError, nearest


def find_class(name: str, known: dict[str, type], key: str) -> Any:
    """Look `name` up among the `known` classes, or import it when it is written `module:Class`.

    Raises:
        UserError: no such name (the nearest one is given), module or class.
    """
    if name in known:
        return known[name]
    if ":" not in str(name):
        raise UserError(
            f"{key}={name!r}: unknown;{nearest(str(name), list(known))} known: {', '.join(known)}, or your own as "
            "module:Class"
            if known
            else f"{key}={name!r}: is no class; write it as module:Class"
        )
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{key}={name!r}: cannot be imported ({error}); is its folder on PYTHONPATH?"
        ) from None
