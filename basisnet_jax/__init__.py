"""BasisNet: two-stage image models whose specialist is synthesized for each image."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from basisnet_jax.inference.hub import from_pretrained as from_pretrained
    from basisnet_jax.inference.hub import push_to_hub as push_to_hub

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports a function of `inference/hub.py` where it is first used: `basisnet_jax.runtime` runs without JAX."""
    if name in ("from_pretrained", "push_to_hub"):
        from basisnet_jax.inference import hub

        return getattr(hub, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
