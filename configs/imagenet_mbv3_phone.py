"""imagenet_mbv3.py for phones: all images share the depthwise kernels.

LiteRT has no fast depthwise convolution with a computed kernel (docs/design/latency.md). Without them both stages take
1.38 times the static network in place of 1.91, in int8_weights, for 1.5M fewer multiply-adds. On the glyphs, sharing
them costs 0.2 points of top-1, on unseen fonts 0.5 (one seed; docs/results.md).

    python -m basisnet_jax.main --config=configs/imagenet_mbv3_phone.py

Hardware: made for a pod slice of TPUs; has run on none yet. Hours: unknown until somebody measures.
"""

import ml_collections

from configs import imagenet_mbv3


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of imagenet_mbv3.py."""
    config = imagenet_mbv3.get_config()
    config.model.synthesize = ("expand", "project")
    config.export.formats = ("int8_weights.tflite", "tflite", "stablehlo")
    return config
