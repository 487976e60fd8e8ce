"""`with.py`."""

from __future__ import annotations

import argparse

from o2o.filters.base import ALL_FORMATS, Filter
from o2o.model import Model


class WithFile(Filter):
    """Read a model from a file and pass it on, as the start of a pipe.

        with.py decode.circle | gc.py > out.circle   =>   gc.py decode.circle > out.circle

    It exists for its established name: every filter takes a file itself. The model does not change.
    """

    name = "with.py"
    purpose = "Combine, cut, clean up, inspect"
    input_formats = ALL_FORMATS
    usage_example = "with.py decode.circle | gc.py > out.circle"
    records_history = False

    def apply(self, model: Model, args: argparse.Namespace) -> bool:
        return False


main = WithFile.main
