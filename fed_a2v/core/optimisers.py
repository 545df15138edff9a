"""torch's Adam and AdamW, without the import of torch's compiler.

torch wraps these methods of every optimiser in a guard against compilation, which imports the compiler at the first
call: 1 to 3 s, as long as torch itself. In a deployment a site's process handles a single message, and the project
compiles nothing, so the wrappers are removed.
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
