"""Loading: what published checkpoints hold beside the encoder, and nothing printed on the way."""

import pytest
import torch

from fed_a2v.encoders.pretrained import Pretrained
from tests.models import tiny_ast, tiny_clip_text, tiny_t5

CPU = torch.device("cpu")


def whole_ast(folder):
    from transformers import ASTConfig, ASTForAudioClassification

    model = ASTForAudioClassification(ASTConfig.from_pretrained(folder)).eval()
    return model, model.audio_spectrogram_transformer, "ASTModel"


def whole_clip(folder):
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    text = CLIPTextConfig.from_pretrained(folder).to_dict()
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    return model, model.text_model, "CLIPTextModel"


def whole_t5(folder):
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config.from_pretrained(folder)).eval()
    return model, model.encoder, "T5EncoderModel"


@pytest.mark.parametrize(("make", "whole"), [(tiny_ast, whole_ast), (tiny_clip_text, whole_clip), (tiny_t5, whole_t5)])
def test_the_encoder_is_taken_out_of_a_whole_model(make, whole, model_folder, tmp_path, capfd):
    """MIT/ast... is a classifier, openai/clip... has a vision side, google/t5... a decoder."""
    model, encoder, name = whole(model_folder(make))
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    network = Pretrained(str(tmp_path), None, "", "encoder").network(name, torch.float32, CPU)
    assert capfd.readouterr() == ("", "")
    given = torch.randn(1, 1024, 64) if make is tiny_ast else torch.tensor([[5, 6, 7, 1]])
    with torch.inference_mode():
        assert torch.allclose(network(given).last_hidden_state, encoder(given).last_hidden_state, atol=1e-6)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_are_loaded_in_the_precision_asked_for(model_folder):
    source = Pretrained(str(model_folder(tiny_t5)), None, "", "targets.t5")
    for dtype in (torch.float32, torch.bfloat16):
        network = source.network("T5EncoderModel", dtype, CPU)
        assert network.encoder.block[0].layer[0].SelfAttention.q.weight.dtype == dtype
