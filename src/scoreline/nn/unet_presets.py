"""Published U-Net settings by name, as arguments of :class:`scoreline.nn.unet.UNet`.

The comments give the trainable parameters of the published network, which a test counts.
"""

from __future__ import annotations

from typing import Any

from scoreline.core.errors import unknown_name

__all__ = ["UNET_PRESETS", "unet_preset"]

# Song et al. 2021 (arXiv 2011.13456), as re-built in EDM: shared by DDPM++ and NCSN++.
_SONG: dict[str, Any] = {
    "base_channels": 128,
    "num_blocks": 4,
    "attention": (16,),
    "decoder_attention": "last",
    "rescale": True,
    "resampling_projection": True,
    "dropout": 0.1,
}
_DDPMPP = _SONG | {"in_shape": (3, 32, 32), "channel_mult": (1, 2, 2, 2)}
_NCSNPP = _DDPMPP | {"time_features": "fourier", "input_pyramid": True, "resampling_filter": (1, 3, 3, 1)}
# Ho et al. 2020 (arXiv 2006.11239).
_DDPM: dict[str, Any] = {
    "in_shape": (3, 32, 32),
    "channel_mult": (1, 2, 2, 2),
    "num_blocks": 2,
    "attention": (16,),
    "resampling": "conv",
    "dropout": 0.1,
}
# Dhariwal and Nichol 2021 (arXiv 2105.05233).
_ADM: dict[str, Any] = {
    "in_shape": (3, 64, 64),
    "base_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attention": (32, 16, 8),
    "head_channels": 64,
    "modulation": "scale-shift",
    "norm_eps": 1e-5,
    "init": "default",
    "time_features": "cos-sin",
    "labels": "output",
    "dropout": 0.1,
}
# Salimans and Ho 2022 (arXiv 2202.00512); their time input lies in [0, 1].
_PROGRESSIVE = _ADM | {"norm_eps": 1e-6, "time_features": "sin-cos", "time_scale": 1000.0, "labels": "output-bias"}
_SLIMFLOW = _DDPMPP | {"dropout": 0.15}

UNET_PRESETS: dict[str, dict[str, Any]] = {
    # EDM, Karras et al. 2022 (arXiv 2206.00364).
    "edm-ddpmpp-cifar10": _DDPMPP | {"channel_mult": (2, 2, 2), "dropout": 0.13},  # 55,732,739
    "edm-ncsnpp-cifar10": _NCSNPP | {"channel_mult": (2, 2, 2), "dropout": 0.13, "augment_dim": 9},  # 56,397,827
    "edm-ddpmpp-ffhq64": _DDPMPP | {"in_shape": (3, 64, 64), "dropout": 0.05},  # 20 joints
    "adm-imagenet64": _ADM | {"num_classes": 1000},  # 295,899,267
    # Score SDE, Song et al. 2021.
    "ddpmpp-continuous-cifar10": _DDPMPP,  # 61,804,419
    "ncsnpp-continuous-cifar10": _NCSNPP,  # 62,758,787, and 128 frozen frequencies
    "ddpm-continuous-cifar10": _DDPM | {"decoder_attention": "last"},  # 35,218,947
    # 256 pixels: shallower levels, and pyramids of the input and of the output; 65,574,421
    "ncsnpp-continuous-celebahq256": _NCSNPP
    | {
        "in_shape": (3, 256, 256),
        "channel_mult": (1, 1, 2, 2, 2, 2, 2),
        "num_blocks": 2,
        "input_pyramid": False,
        "input_skip": True,
        "output_skip": True,
        "dropout": 0.0,
    },
    "ddpm-cifar10": _DDPM,  # 35,746,307, attention after every decoder block as in DDIM's code
    "progressive-cifar10": _PROGRESSIVE
    | {
        "in_shape": (3, 32, 32),
        "base_channels": 256,
        "channel_mult": (1, 1, 1),
        "attention": (8, 16),
        "head_channels": None,
        "dropout": 0.2,
    },  # 60,004,099
    "progressive-imagenet64-both": _PROGRESSIVE | {"num_classes": 1000, "out_channels": 6},  # 295,905,222
    # Score forgetting distillation, Chen et al. 2024 (arXiv 2409.11219): DDIM's network with classes.
    "sfd-cifar10": _DDPM | {"num_classes": 10, "labels": "separate", "init": "default"},  # 38,632,323
    "sfd-stl10": _DDPM
    | {
        "in_shape": (3, 64, 64),
        "channel_mult": (1, 2, 2, 2, 4),
        "num_classes": 10,
        "labels": "separate",
        "init": "default",
    },  # 83,159,683
    # Consistency trajectory models, Kim et al. 2024 (arXiv 2310.02279): a second time.
    "ctm-cifar10": _DDPMPP | {"channel_mult": (2, 2, 2), "dropout": 0.13, "second_time": True},  # 60,395,267
    # Improved rectified flow, Lee et al. 2024 (arXiv 2405.20320).
    "rfpp-ffhq64": _NCSNPP | {"in_shape": (3, 64, 64), "dropout": 0.25, "augment_dim": 9},  # 62,761,091
    # SlimFlow, Zhu et al. 2024 (arXiv 2407.12718).
    "slimflow-28m": _SLIMFLOW | {"num_blocks": 2, "channel_mult": (1, 2, 2)},  # 27,906,179
    "slimflow-16m": _SLIMFLOW | {"num_blocks": 2, "channel_mult": (1, 2, 2), "base_channels": 96},  # 15,707,235
    "slimflow-7m": _SLIMFLOW | {"num_blocks": 2, "channel_mult": (1, 2, 2), "base_channels": 64},  # 6,989,891
    "slimflow-3m": _SLIMFLOW | {"num_blocks": 1, "channel_mult": (1, 1, 2), "base_channels": 64},  # 3,437,123
}


def unet_preset(name: str, **changes: Any) -> dict[str, Any]:
    """The arguments of a published U-Net, with some changed; a misspelt change is refused by the network.

    Raises:
        InputError: the name is unknown; the nearest valid one is named.

    >>> unet_preset("adm-imagenet64", dropout=0.0)["base_channels"]
    192
    """
    if name not in UNET_PRESETS:
        raise unknown_name("U-Net preset", name, UNET_PRESETS)
    return UNET_PRESETS[name] | changes
