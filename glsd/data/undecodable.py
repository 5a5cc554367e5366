"""What cannot be decoded: how it is told, and how the libraries that find it out are kept quiet."""

import logging
import struct
import threading
import warnings
import zlib
from typing import Final

from PIL import Image

BROKEN: Final = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, RuntimeError, Image.DecompressionBombError, struct.error, zlib.error),
)
"""What Pillow and imagecodecs raise on broken content."""


class UndecodableImage(ValueError):
    """These bytes are not an image that can be decoded; the message says why."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image of more than `max_pixels` pixels, or of none."""
    pixels = width * height
    if pixels > max_pixels:
        raise UndecodableImage(f"{width} x {height} = {pixels} pixels are more than data.max_pixels {max_pixels}")
    if pixels == 0:
        raise UndecodableImage(f"{width} x {height} pixels are none")


class _LibrariesQuiet:
    """Within it Pillow and imagecodecs say nothing of odd content: they name no file and no remedy.

    The filters are the process's, so the first thread that enters sets them and the last that leaves restores them;
    between them any number decode at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._loggers = [logging.getLogger(name) for name in ("PIL.TiffImagePlugin", "imagecodecs")]

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._restored = warnings.catch_warnings()
                self._restored.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._spoke = [logger for logger in self._loggers if not logger.disabled]
                for logger in self._spoke:
                    logger.disabled = True
            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                for logger in self._spoke:
                    logger.disabled = False
                self._restored.__exit__(None, None, None)


libraries_quiet: Final = _LibrariesQuiet()
