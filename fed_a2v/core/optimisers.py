"""Adam and AdamW as torch has them, without its compiler.

torch guards these methods of every optimiser from being compiled, and imports its compiler for that when one is first
called: 1 to 3 s, as much as torch itself. In a deployment a site's process lives for one message, and nothing here is
compiled.
"""

from __future__ import annotations

import inspect

import torch


class Adam(torch.optim.Adam):
    """`torch.optim.Adam`."""

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW`."""
