"""How fast a round was on its machines, and the server's memory: the metrics `machine/...`, for every engine.

They come from times and counts that the round has anyway, and one measurement of the matrix rate at the start of the
run. Nothing is computed from them, and they differ from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fed_a2v.config.sections.training import FinetuneSettings, SiteSettings
from fed_a2v.core.matrix_rate import matrix_rate, training_operations
from fed_a2v.core.server_step import ServerStep
from fed_a2v.federation.factory import more_steps
from fed_a2v.federation.memory import peak_memory
from fed_a2v.federation.process import is_deployed_server


class MachineFigures:
    """Measures the matrix rate of this process, and computes the figures of each round.

    Args:
        device: device of the server's work; torch already has the run's number of threads.
        site: the section `site`.
        finetune: the section `finetune`.
    """

    def __init__(self, device: str, site: SiteSettings, finetune: FinetuneSettings) -> None:
        self.device = torch.device(device)
        self.site, self.finetune = site, finetune
        self.rate = matrix_rate(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # the measurement is no part of the run

    def of_round(self, row: Mapping[str, Any], clips: int, step: ServerStep, tokens: int) -> dict[str, float]:
        """The figures of a round; those without a value, such as the speed of sites that report no time, are left out.

        `site_...`: of one site, from the seconds that the sites report for their whole task. In a deployment the server
        cannot check these, and it does not know the sites' matrix rate. `server_...`: of fine-tuning and distillation.
        `bytes_per_second`: payload in both directions over the time from the first request to the last reply, with the
        sites' work.

        Args:
            row: metrics of the round, with `site_seconds` and `seconds/...`.
            clips: training clips of the sites whose replies are used, in total.
            step: the server step.
            tokens: S, audio tokens of a clip as the adapters get it.
        """
        site, finetune = self.site, self.finetune
        operations = training_operations(step.adapters, tokens)
        figures = {"machine/matrix_rate": self.rate}
        seconds, steps = sum(row.get("site_seconds", {}).values()), row.get("site/optimiser_steps", 0.0)
        if clips and steps and seconds:
            more = more_steps(site, finetune, row["round"]) * site.batch_size * row["replies"]
            rate = (clips * site.epochs + more) / seconds
            figures |= {
                "machine/site_clips_per_second": rate,
                "machine/site_steps_per_second": steps * row["replies"] / seconds,
            }
            if not is_deployed_server():
                figures["machine/site_matrix_share"] = rate * operations / self.rate
        seconds, steps = _seconds(row, "finetune", "distil"), row.get("server/optimiser_steps", 0)
        if steps and seconds:
            rate = steps / seconds
            figures["machine/server_steps_per_second"] = rate
            figures["machine/server_matrix_share"] = rate * finetune.batch_size * operations / self.rate
        if seconds := _seconds(row, "sites", "replies", "evaluate"):
            figures["machine/bytes_per_second"] = (row["bytes_up"] + row["bytes_down"]) / seconds
        if memory := peak_memory():
            figures["machine/peak_memory"] = float(memory)
        if self.device.type == "cuda":
            figures["machine/peak_gpu_memory"] = float(torch.cuda.max_memory_allocated(self.device))
        return figures


def _seconds(row: Mapping[str, Any], *phases: str) -> float:
    return float(sum(row.get(f"seconds/{phase}", 0.0) for phase in phases))
