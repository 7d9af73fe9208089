"""localdpo: train language models on human preferences (DPO) with MLX, on your own machine.

`localdpo.preference_loss` is public. It is looked up on first use, so that `import localdpo` loads neither
MLX nor anything else that is slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.2.0"
__all__ = ["__version__", "preference_loss"]

if TYPE_CHECKING:
    from localdpo.objective.losses import preference_loss


def __getattr__(name: str) -> object:
    if name == "preference_loss":
        from localdpo.core.process import preload

        preload()
        from localdpo.objective.losses import preference_loss

        return preference_loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
