"""Tiny image models of the very classes that users have, with random weights, saved as a download would be.

They take prompts of the real widths, CLIP's 768 and T5's 4096, and have text encoders that give them. Each function
writes into the folder `path` and returns it; the same arguments give the same weights.
"""

import tempfile
from pathlib import Path

import torch

from tests.models import tiny_clip_text, tiny_t5


def tiny_stable_diffusion(path: Path, *, seed: int = 0) -> Path:
    """A `StableDiffusionPipeline` that draws 16 x 16 pixels."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    text_encoder, tokenizer = _clip_text(768, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(4, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=768,
            attention_head_dim=2,
            norm_num_groups=2,
        )
        vae = _vae(latent_channels=4)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)
    return path


def tiny_flux(path: Path, *, seed: int = 0) -> Path:
    """A `FluxPipeline` that draws 16 x 16 pixels, with `images.size=16`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    text_encoder, tokenizer = _clip_text(768, seed)
    text_encoder_2, tokenizer_2 = _t5(4096, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
            axes_dims_rope=(4, 4, 8),
        )
        vae = _vae(latent_channels=4)
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    ).save_pretrained(path)
    return path


def tiny_clip(path: Path, *, seed: int = 0) -> Path:
    """A `CLIPModel` with two layers a side, and its processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    text_model, tokenizer = _clip_text(16, seed)
    config = CLIPConfig(
        text_config=text_model.config.to_dict(),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPModel(config).eval().save_pretrained(path)
    CLIPProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
    ).save_pretrained(path)
    return path


def _vae(latent_channels):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=latent_channels,
        norm_num_groups=2,
        shift_factor=0.0,
    )


def _clip_text(width, seed):
    """A tiny text model of CLIP and its tokenizer."""
    from transformers import CLIPTextModel, CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = tiny_clip_text(Path(folder), width=width, seed=seed)
        return CLIPTextModel.from_pretrained(path), CLIPTokenizer.from_pretrained(path)


def _t5(width, seed):
    """A tiny T5 encoder and its tokenizer."""
    from transformers import T5EncoderModel, T5Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = tiny_t5(Path(folder), width=width, seed=seed)
        return T5EncoderModel.from_pretrained(path), T5Tokenizer.from_pretrained(path)
