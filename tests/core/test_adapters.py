import pytest
import torch
from torch import nn

from fed_a2v.core.adapters import Adapters, ClassPrompts, PromptAdapter, prompt_centre
from tests.core.conftest import World, draws


def class_prompts(classes, clip, t5=None):
    random = draws(0)
    return ClassPrompts(
        tuple(f"class {k}" for k in range(classes)),
        torch.randn(classes, *clip, generator=random),
        None if t5 is None else torch.randn(classes, *t5, generator=random),
    )


@pytest.mark.parametrize("audio_width", [512, 1024])
def test_both_flux_adapters_together_stay_within_eight_million_parameters(audio_width):
    adapters = Adapters(audio_width, class_prompts(3, (1, 768), (17, 4096)), 512)
    assert sum(parameter.numel() for parameter in adapters.parameters()) <= 8_000_000


def test_flux_adapters_give_one_clip_token_and_seventeen_t5_tokens():
    clip, t5 = Adapters(512, class_prompts(3, (1, 768), (17, 4096)), 64)(torch.randn(5, 1, 512))
    assert clip.shape == (5, 1, 768)
    assert t5.shape == (5, 17, 4096)


def test_stable_diffusion_adapters_give_77_clip_tokens_and_no_t5():
    clip, t5 = Adapters(512, class_prompts(3, (77, 768)), 64)(torch.randn(5, 1, 512))
    assert clip.shape == (5, 77, 768)
    assert t5 is None


@pytest.mark.parametrize("audio_tokens", [1, 4])
def test_prompt_tokens_differ_even_if_the_tokens_of_class_prompts_do_not(audio_tokens):
    prompts = torch.randn(3, 1, 16).repeat(1, 6, 1)
    out = PromptAdapter(12, prompts, 32)(torch.randn(5, audio_tokens, 12))
    distances = torch.cdist(out, out) + torch.eye(6)
    assert distances.min() > 0.01


def test_every_audio_token_affects_the_output():
    adapters = Adapters(12, class_prompts(3, (1, 16), (4, 20)), 32)
    audio = torch.randn(2, 5, 12)
    before = adapters(audio)
    for token in range(5):
        changed = audio.clone()
        changed[:, token] += torch.randn(2, 12)
        after = adapters(changed)
        assert (after.clip - before.clip).abs().max() > 1e-4
        assert (after.t5 - before.t5).abs().max() > 1e-4


def test_outputs_start_at_the_centre_of_the_prompts_in_their_scale():
    prompts = 3 * torch.randn(50, 4, 64) + 10
    out = PromptAdapter(32, prompts, 64)(torch.randn(40, 1, 32))
    assert (out - prompt_centre(prompts)).abs().mean() < 2 * 3
    assert abs(out.mean().item() - 10) < 1


def test_a_row_does_not_depend_on_the_rest_of_its_batch_even_in_training():
    adapters = Adapters(12, class_prompts(3, (1, 16), (4, 20)), 32).train()
    audio = torch.randn(8, 1, 12) * torch.arange(1, 9)[:, None, None]
    together = adapters(audio)
    for row in range(8):
        alone = adapters(audio[row : row + 1])
        torch.testing.assert_close(together.clip[row : row + 1], alone.clip)
        torch.testing.assert_close(together.t5[row : row + 1], alone.t5)


def test_there_is_no_batch_norm_and_no_running_statistic():
    adapters = Adapters(12, class_prompts(3, (1, 16), (4, 20)), 32)
    assert not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in adapters.modules())
    before = {name: value.clone() for name, value in adapters.state_dict().items()}
    adapters.train()(torch.randn(9, 1, 12))
    assert all(torch.equal(before[name], value) for name, value in adapters.state_dict().items())


def test_loading_weights_reproduces_the_outputs():
    world = World()
    source, other = world.adapters(t5=(3, 10)), world.adapters(t5=(3, 10))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    audio = torch.randn(4, 1, 48)
    assert not torch.equal(source(audio).clip, other(audio).clip)
    other.load_weights(source.weights())
    assert torch.equal(source(audio).clip, other(audio).clip)
    assert torch.equal(source(audio).t5, other(audio).t5)
    assert len(source.weights()) == len(list(source.parameters()))


def test_adapters_without_initial_weights_adopt_those_of_others_without_a_copy():
    world = World()
    source = world.adapters(t5=(3, 10))
    source.set_standardisation(torch.full((48,), 0.5), torch.full((48,), 2.0))
    adapters = Adapters(48, world.prompts(t5=(3, 10)), 32, initial=False)
    adapters.adopt(source.weights(), source.fixed())
    audio = torch.randn(4, 1, 48)
    assert torch.equal(source(audio).clip, adapters(audio).clip)
    assert torch.equal(source(audio).t5, adapters(audio).t5)
    assert [a.data_ptr() for a in adapters.weights()] == [b.data_ptr() for b in source.weights()]
    assert all(parameter.requires_grad for parameter in adapters.parameters())


def test_a_missing_weight_is_an_error():
    adapters = World().adapters()
    with pytest.raises(ValueError):
        adapters.load_weights(adapters.weights()[:-1])
    with pytest.raises(ValueError):
        adapters.adopt(adapters.weights(), adapters.fixed()[:-1])


def test_inputs_are_standardised_so_their_unit_does_not_matter():
    adapters = World().adapters()
    audio = torch.randn(30, 1, 48, generator=draws(5)) * torch.linspace(0.8, 1.2, 48)
    adapters.set_standardisation(audio.flatten(0, 1).mean(0), audio.flatten(0, 1).std(0))
    expected = adapters(audio).clip
    big = 50 * audio + 100
    adapters.set_standardisation(big.flatten(0, 1).mean(0), big.flatten(0, 1).std(0))
    torch.testing.assert_close(adapters(big).clip, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dead", [slice(0, 3), slice(None)], ids=["some columns", "all columns"])
def test_constant_columns_stay_finite_after_standardisation(dead):
    adapters = World().adapters()
    std = torch.ones(48)
    std[dead] = 0
    adapters.set_standardisation(torch.full((48,), 7.0), std)
    assert adapters(torch.full((2, 1, 48), 7.0)).clip.isfinite().all()
    assert adapters(torch.randn(2, 1, 48)).clip.isfinite().all()


def test_a_nearly_constant_column_is_not_amplified():
    adapters = World().adapters()
    std = torch.ones(48)
    std[0] = 1e-7
    adapters.set_standardisation(torch.zeros(48), std)
    assert adapters.audio_std.min() > 0.9
    assert len(adapters.audio_std.unique()) == 1  # columns keep their proportions


def test_the_centre_of_a_single_class_is_zero():
    prompts = torch.randn(1, 3, 8)
    assert torch.equal(prompt_centre(prompts), torch.zeros(3, 8))
