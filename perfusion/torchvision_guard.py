"""Make `import torchvision` work beside a CPU build of torch whose ABI its compiled extension does not match.

The package index carries torchvision wheels built for CUDA. Beside a CPU torch their extension cannot load, and
`import torchvision` dies on `operator torchvision::nms does not exist`, taking open_clip and parts of transformers
with it. Nothing here uses those operators; their schemas are all that the import wants.
"""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["install"]

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[object] = []  # a torch.library.Library undefines its operators when it is collected


def install() -> bool:
    """Define the missing torchvision operator schemas; do nothing where torchvision is whole or absent.

    Returns:
        True when schemas were defined by this call, else False.
    """
    if _libraries or "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return False
    import torch

    if _extension_loads():
        return False
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{operator}{_SCHEMA}")
            _libraries.append(library)
    return bool(_libraries)


def _extension_loads() -> bool:
    """Whether torchvision's compiled extension loads beside this torch (the same call its own import makes)."""
    from pathlib import Path

    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    extensions = sorted(Path(spec.origin).parent.glob("_C*.so")) + sorted(Path(spec.origin).parent.glob("_C*.pyd"))
    try:
        for extension in extensions[:1]:
            torch.ops.load_library(str(extension))
    except OSError:
        return False
    return bool(extensions)
