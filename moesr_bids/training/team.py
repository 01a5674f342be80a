"""Processes of a training that torchrun starts, on one machine or several."""

from __future__ import annotations

import gc
import os

import torch
import torch.distributed as dist
from attrs import frozen
from torch import nn


@frozen(kw_only=True)
class Team:
    """Place of this process among those of a training, from the environment variables of torchrun."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: torch.device) -> Team:
        """Join the other processes, if there are any."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            if device.index is not None:
                torch.cuda.set_device(device)
            return cls(rank=0, size=1, device=device)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(rank=dist.get_rank(), size=size, device=device)

    def wait(self) -> None:
        """Wait for the others: gloo may abort a process that ends while the first still validates and saves."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Part from the other processes."""
        if self.size > 1:
            dist.destroy_process_group()
            # The threads of gloo must end before the interpreter does. What refers to the group would keep them.
            gc.collect()

    def agree(self, share: float) -> float:
        """Return the share of the first process, so that all end at the same step."""
        if self.size == 1:
            return share
        said = torch.tensor([share], dtype=torch.float64, device=self.device)
        dist.broadcast(said, 0)
        return float(said)

    def average_gradients(self, network: nn.Module) -> None:
        """Average the gradients over the processes."""
        if self.size == 1:
            return
        flat = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        dist.all_reduce(flat)
        flat /= self.size
        start = 0
        for p in network.parameters():
            if p.grad is not None:
                p.grad.copy_(flat[start : start + p.grad.numel()].view_as(p.grad))
                start += p.grad.numel()
