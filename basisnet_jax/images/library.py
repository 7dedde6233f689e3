"""The library that decodes and resizes images: OpenCV where it is installed, else Pillow.

Both modules have the same functions, and give the same pixels but for rounding.
"""

from basisnet_jax.errors import UserError

try:
    from basisnet_jax.images.opencv import decode, resize
except ImportError:
    try:
        from basisnet_jax.images.pillow import decode, resize
    except ImportError:
        raise UserError(
            "image files need OpenCV or Pillow, and neither is installed; run pip install pillow, or give a .npy file "
            "of pixels."
        ) from None

__all__ = ["decode", "resize"]
