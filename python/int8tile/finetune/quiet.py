"""Silences what the Hugging Face libraries print besides our own progress."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the bars for files, the report of the new classifier, and the hub's retries."""
    hub = logging.getLogger("huggingface_hub")
    level, verbosity = hub.level, transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    hub.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        hub.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
