"""Headers of .npy files, read without believing them."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from sail_encoder.images.table import Array
from sail_encoder.io.errors import in_one_line
from sail_encoder.io.files import open_regular


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    """Shape and type of an array in a .npy file, which is left where its values begin.

    Raises:
        ValueError: If it is none, or holds what only Python could unpack.
    """
    try:
        version = npy_format.read_magic(file)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
    # The header is an expression of Python, which ends its parser in many ways.
    except Exception as error:
        raise ValueError(in_one_line(error)) from None
    if is_fortran or dtype.hasobject or not shape:
        raise ValueError("it is no array of numbers as sail extract writes it")
    return shape, dtype


def map_array(path: Path) -> Array:
    """The array in a .npy file, mapped into memory.

    Raises:
        OSError: If it cannot be opened, or is no regular file.
        ValueError: If it holds no array of numbers, or not as many as it says.
    """
    with open_regular(path) as file:
        shape, dtype = read_header(file)
        return np.memmap(file, dtype, "r", file.tell(), shape)
