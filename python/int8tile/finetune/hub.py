"""Loads a data set from the Hugging Face hub, or says in one line why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from int8tile.finetune.quiet import quiet
from int8tile.finetune.settings import UsageError

if TYPE_CHECKING:
    import datasets


def load_dataset(name: str, *config: str, files: str) -> datasets.DatasetDict:
    """Load the splits of a data set from the hub or its cache.

    Args:
        name: Id of the data set.
        *config: Name of its configuration, if it has several.
        files: The kind of local files that --data takes instead.

    Returns:
        Split name -> rows.

    Raises:
        UsageError: The hub cannot be reached.
    """
    import datasets

    try:
        with quiet():
            return datasets.load_dataset(name, *config)
    except Exception as error:  # the hub client raises a dozen unrelated types when offline
        why = ": ".join(filter(None, [type(error).__name__, *str(error).splitlines()[:1]]))
        what = " ".join([name, *(f"({each})" for each in config)])
        raise UsageError(
            f"int8tile finetune: cannot load {what} from the Hugging Face hub; "
            f"give the folder of its {files} files with --data DIR ({why})"
        ) from error
