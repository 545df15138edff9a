"""Tiny image models of the very classes that users have, with random weights, saved as a download would be.

They take prompts of the real widths: CLIP's 768, T5's 4096. Each function writes into the folder `path` and returns
it; the same arguments give the same weights.
"""

import string
from pathlib import Path

import torch

CHARACTERS = string.ascii_lowercase + string.digits + "-',."


def tiny_stable_diffusion(path: Path, *, seed: int = 0) -> Path:
    """A `StableDiffusionPipeline` that draws 16 x 16 pixels."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

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
        text_encoder = CLIPTextModel(_clip_text(768))
        vae = _vae(latent_channels=4)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_clip_tokenizer(),
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
    """A `FluxPipeline` that draws 16 x 16 pixels, with `images.size=16`; its text encoders are narrow."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

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
        text_encoder = CLIPTextModel(_clip_text(16))
        t5 = T5EncoderModel(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
        vae = _vae(latent_channels=4)
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_clip_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=T5Tokenizer(vocab=[(piece, -2.0 if number > 2 else 0.0) for number, piece in enumerate(pieces)]),
        transformer=transformer,
    ).save_pretrained(path)
    return path


def tiny_clip(path: Path, *, seed: int = 0) -> Path:
    """A `CLIPModel` with two layers a side, and its processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    config = CLIPConfig(
        text_config=_clip_text(16).to_dict(),
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
        tokenizer=_clip_tokenizer(),
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


def _clip_text(width):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=2 + 2 * len(CHARACTERS),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _clip_tokenizer():
    from transformers import CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *CHARACTERS, *(f"{character}</w>" for character in CHARACTERS)]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77)
