"""Pickles of published data sets, read without running anything that they say."""

import pickle
from pathlib import Path
from typing import Any

from evals.errors import DatasetError
from sail_encoder.io.errors import in_one_line
from sail_encoder.io.files import open_regular


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, text and numbers, which need no class or function, and looks none up."""

    def find_class(self, module: str, name: str) -> Any:
        raise DatasetError(f"it names {module}.{name}, which would be run")


def read_pickle(path: Path) -> Any:
    """Content of a pickle of lists, dictionaries, text and numbers, also one of Python 2.

    Raises:
        DatasetError: If it holds anything else, such as code, or is damaged.
    """
    try:
        with open_regular(path) as file:
            return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except DatasetError as error:
        raise DatasetError(
            f"{path} is no pickle of plain data: {error}; get the original file, or save its content as JSON"
        ) from None
    # A damaged pickle ends at any point of the machine that reads it.
    except Exception as error:
        raise DatasetError(f"{path} cannot be read as a pickle ({in_one_line(error)}); get the original file") from None
