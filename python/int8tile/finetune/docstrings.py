"""The default task: tell the package of a standard-library docstring, read from disk with `ast`."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from int8tile.finetune.examples import Example, TaskData
from int8tile.finetune.settings import UsageError

# Present in every CPython from 3.10 to 3.14, except tkinter, which some distributions package
# separately: it is a class where it is there. The value is the entry below the library's root.
PACKAGES = {
    "asyncio": "asyncio",
    "decimal": "_pydecimal.py",
    "email": "email",
    "http": "http",
    "importlib": "importlib",
    "logging": "logging",
    "multiprocessing": "multiprocessing",
    "tkinter": "tkinter",
    "unittest": "unittest",
    "xml": "xml",
}
OPTIONAL = frozenset({"tkinter"})
MASK = "package"  # stands where the text names its own package
MIN_WORDS, MAX_WORDS = 5, 80
EVAL_SHARE = 5  # one near-duplicate group in five goes to evaluation
NEAR_DUPLICATE = 0.7  # Jaccard similarity of the word sets from which two texts count as one


def load(root: Path | None = None) -> TaskData:
    """Build the task from a Python installation, importing nothing of it.

    The first paragraph of each docstring of 5 to 80 words is one example, with the name of the
    package masked. A text occurs once; one that occurs in two packages is left out. The split
    depends on the texts alone and keeps near-duplicates on one side.

    Args:
        root: Folder of the standard library; None takes the running interpreter's.

    Returns:
        The training and evaluation examples, in an order given by a hash of the text.

    Raises:
        UsageError: The folder lacks the sources of a package.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    present = [name for name in PACKAGES if (root / PACKAGES[name]).exists()]
    missing = sorted(PACKAGES.keys() - OPTIONAL - set(present))
    if missing:
        raise UsageError(
            f"int8tile finetune: the docstrings task needs the sources of the standard library; "
            f"{root} lacks {', '.join(missing)}"
        )
    packages: dict[str, set[str]] = defaultdict(set)  # text -> packages it occurs in
    for name in present:
        for text in _texts(root / PACKAGES[name], name):
            packages[text].add(name)
    texts = sorted((t for t, names in packages.items() if len(names) == 1), key=_digest)
    sides: dict[bool, list[Example]] = {False: [], True: []}
    for text, group in zip(texts, near_duplicate_groups(texts), strict=True):
        example = Example(text, None, present.index(next(iter(packages[text]))))
        sides[int(_digest(texts[group]), 16) % EVAL_SHARE == 0].append(example)
    return TaskData(sides[False], {"eval": sides[True]}, present, ("accuracy",))


def near_duplicate_groups(texts: Sequence[str]) -> list[int]:
    """Group texts whose word sets have a Jaccard similarity of at least 0.7.

    Two sets that similar share one of their rarest words: of a set of size s, one of the
    s - ceil(0.7 s) + 1 rarest. Only such pairs are compared.

    Args:
        texts: The texts.

    Returns:
        For each text the index of its group's first text; chains of pairs are one group.
    """
    words = [frozenset(re.findall(r"[a-z]+", text.lower())) for text in texts]
    count = Counter(word for each in words for word in each)
    parent = list(range(len(texts)))

    def find(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    having: dict[str, list[int]] = defaultdict(list)  # rare word -> earlier texts
    for i, mine in enumerate(words):
        rarest_first = sorted(mine, key=lambda word: (count[word], word))
        rare = rarest_first[: int(len(mine) * (1 - NEAR_DUPLICATE)) + 1]
        for j in {j for word in rare for j in having[word]}:
            if len(mine & words[j]) >= NEAR_DUPLICATE * len(mine | words[j]):
                low, high = sorted((find(i), find(j)))
                parent[high] = low
        for word in rare:
            having[word].append(i)
    return [find(i) for i in range(len(texts))]


def _texts(path: Path, name: str) -> Iterator[str]:
    """Yield the masked first paragraph of each docstring below `path`."""
    own_name = re.compile(re.escape(name), re.IGNORECASE)
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        if {"test", "tests"} & set(file.relative_to(path).parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the sources are not ours
            tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                paragraph = re.split(r"\n\s*\n", ast.get_docstring(node) or "")[0].split()
                if MIN_WORDS <= len(paragraph) <= MAX_WORDS:
                    yield own_name.sub(MASK, " ".join(paragraph))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
