"""What of the user's environment a process gets that opens untrusted files, or of which such processes are copies."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Nothing else: the rest may hold tokens.
_KEPT = re.compile(
    r"(ONNXSPECT|OMP|GOMP|KMP|MKL|OPENBLAS|CUDA|NVIDIA|CUBLAS|CUDNN|NCCL|TORCH|PYTORCH|ORT|LC|PYTHON|MALLOC|GLIBC)_?\w*"
    r"|PATH|VIRTUAL_ENV|CONDA_PREFIX|(DY)?LD_\w+|LANG|LANGUAGE|TZ|TERM|COLORTERM|NO_COLOR|USER|LOGNAME|SOURCE_DATE_EPOCH"
)
#: Where things lie: no worker's business, but that of whoever prepares places for it.
_PLACES = ("HOME", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker may know."""
    return {name: value for name, value in environment.items() if _KEPT.fullmatch(name)}


def kept_with_places(environment: Mapping[str, str]) -> dict[str, str]:
    """The same, and where the user's folders are."""
    return {**kept(environment), **{name: environment[name] for name in _PLACES if name in environment}}
