"""Name patterns that stand for the layers of one kind in all blocks of a model."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping, Sequence

from int8tile.config import Int8TileConfig, matches

Configs = dict[str, Int8TileConfig | None]


def mapping(own: Configs, base: Int8TileConfig, names: Sequence[str]) -> Configs:
    """Make the mapping in which each layer's first match is its own config.

    Args:
        own: by layer, where it is not `base`.
        base: that of all other layers.
        names: all layers.

    Returns:
        Configs by pattern, "*" last.
    """
    wanted = {name: own.get(name, base) for name in names}

    def pattern(name: str) -> str:
        every = re.sub(r"\d+", "*", glob.escape(name))
        # It also matches deeper names, which come first.
        kind = [n for n in names if n.count(".") == name.count(".") and matches(n, every)]
        same = len(kind) > 1 and all(wanted[n] == wanted[name] for n in kind)
        return every if same and every != "*" else glob.escape(name)

    listed = {pattern(name): config for name, config in own.items()}
    # A name is also a pattern for names that end in it: the longer come first, and a layer that a
    # shorter one would catch is listed too.
    caught = [n for n in names if n not in own and any(matches(n, p) for p in listed)]
    listed |= {pattern(name): base for name in caught}
    ordered = sorted(listed, key=lambda each: -each.count("."))
    return {**{each: listed[each] for each in ordered}, "*": base}


def shortened(names: Iterable[str], configs: Mapping[str, object], known: Iterable[str]) -> str:
    """List layers, a pattern in place of those that it alone decides.

    Args:
        names: the layers.
        configs: by pattern, of which the first match decides.
        known: all layers that are listed somewhere.
    """
    first = {n: next(p for p in configs if matches(n, p)) for n in known}
    names = list(names)
    shown = []
    for name in names:
        pattern = first[name]
        decided = {n for n, p in first.items() if p == pattern}
        whole = pattern != "*" and len(decided) > 1 and decided <= set(names)
        shown.append(pattern if whole else name or "(root)")
    return ", ".join(dict.fromkeys(shown))
