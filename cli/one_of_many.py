"""One command of many: as `onnxspect`, but it ends with the process that started it."""

from __future__ import annotations

import sys

from onnxspect.cli.main import main
from onnxspect.converters.sandbox import linux

if __name__ == "__main__":
    if sys.platform == "linux":
        linux.die_with_parent()
    main()
