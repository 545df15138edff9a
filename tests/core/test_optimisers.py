"""The optimisers are torch's, bit for bit, and leave its compiler alone."""

import subprocess
import sys

import pytest
import torch

from fed_a2v.core.optimisers import Adam, AdamW

PAIRS = [(Adam, torch.optim.Adam, {"betas": (0.5, 0.9)}), (AdamW, torch.optim.AdamW, {"weight_decay": 0.1})]


def trained(optimiser, parameter, steps, state=None):
    """Parameters and state after some steps, with a start from `state` where there is one."""
    if state is not None:
        optimiser.load_state_dict(state)
    for step in range(steps):
        optimiser.zero_grad(set_to_none=True)
        (parameter.sin() * (step + 1)).sum().backward()
        optimiser.step()
    return parameter.detach().clone(), optimiser.state_dict()


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS, ids=["Adam", "AdamW"])
def test_steps_and_states_are_those_of_torch(ours, theirs, options):
    first = [torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2)]
    (one, state), (other, wanted) = (
        trained(kind([parameter], lr=0.1, fused=True, **options), parameter, 3)
        for kind, parameter in zip((ours, theirs), first, strict=True)
    )
    assert torch.equal(one, other)
    assert not torch.equal(one, torch.linspace(-1, 1, 7))
    assert state["param_groups"] == wanted["param_groups"]
    assert all(torch.equal(state["state"][0][name], value) for name, value in wanted["state"][0].items())
    # A state of the one is a state of the other.
    second = [torch.nn.Parameter(one.clone()) for _ in range(2)]
    (one, _), (other, _) = (
        trained(kind([parameter], lr=0.1, fused=True, **options), parameter, 2, saved)
        for kind, parameter, saved in zip((ours, theirs), second, (wanted, state), strict=True)
    )
    assert torch.equal(one, other)


def test_a_step_builds_no_graph():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimiser = AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimiser.step()
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert all(not value.requires_grad for value in optimiser.state[parameter].values())


def test_a_whole_round_does_not_wait_for_torchs_compiler(tmp_path):
    code = """
import sys
from pathlib import Path
from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.simulation import run_in_process
run_in_process(compose_settings(["experiment=quick", "rounds=1", "generator.training_epochs=2"]), Path(sys.argv[1]))
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
