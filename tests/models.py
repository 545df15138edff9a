"""Tiny models of the very classes that users have, with random weights, saved as a download would be.

Each function writes a model into the folder `path` and returns it. The same arguments give the same weights.
"""

import string
from pathlib import Path

import torch


def tiny_ast(
    path: Path,
    *,
    width: int = 32,
    max_length: int = 1024,
    sampling_rate: int = 16_000,
    labels: int = 0,
    seed: int = 0,
) -> Path:
    """An `ASTModel` with two layers, and its feature extractor; an `ASTForAudioClassification` if it has labels."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, ASTModel

    config = ASTConfig(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        num_mel_bins=64,
        initializer_range=0.15,
        **({"num_labels": labels} if labels else {}),
    )
    _save(path, seed, lambda: ASTForAudioClassification(config) if labels else ASTModel(config))
    ASTFeatureExtractor(num_mel_bins=64, sampling_rate=sampling_rate).save_pretrained(path)
    return path


def tiny_clap(path: Path, *, width: int = 32, fusion: bool = False, seed: int = 0) -> Path:
    """A `ClapModel` with four small stages, its feature extractor, a tokenizer that spells words out, and fusion."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

    # "Ġ" is the space before a word.
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *string.ascii_lowercase, *string.digits, *"-',."]

    config = ClapConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 32,
            "projection_dim": width,
        },
        audio_config={
            "patch_embeds_hidden_size": 8,
            "hidden_size": 64,
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "projection_dim": width,
            "enable_fusion": fusion,
            "fusion_type": "aff_2d" if fusion else None,
            "initializer_factor": 1.0,
        },
        projection_dim=width,
    )
    _save(path, seed, lambda: ClapModel(config))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    RobertaTokenizer(vocab=vocabulary, merges=[]).save_pretrained(path)
    # A quarter of the published frames, for speed.
    ClapFeatureExtractor(hop_length=1920, truncation="fusion" if fusion else "rand_trunc").save_pretrained(path)
    return path


def tiny_clip_text(path: Path, *, width: int = 64, seed: int = 0) -> Path:
    """A `CLIPTextModel` with two layers and 77 positions, and a tokenizer that spells words out."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    characters = list(string.ascii_lowercase + string.digits + "-',.")
    words = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{character}</w>" for character in characters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        # The published size, so that positions and words matter in so narrow a network.
        initializer_factor=3.0,
    )
    _save(path, seed, lambda: CLIPTextModel(config))
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(path)
    return path


def tiny_t5(path: Path, *, width: int = 64, seed: int = 0) -> Path:
    """A `T5EncoderModel` with two layers of a few heads, and a tokenizer that spells words out."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase, *string.digits, *"-',."]
    config = T5Config(
        vocab_size=len(pieces) + 100,
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    _save(path, seed, lambda: T5EncoderModel(config))
    T5Tokenizer(vocab=[(piece, -2.0 if number > 2 else 0.0) for number, piece in enumerate(pieces)]).save_pretrained(
        path
    )
    return path


def _save(path: Path, seed: int, make) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make().eval().save_pretrained(path)
