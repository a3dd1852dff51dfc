"""Batch norm over what all ranks have, exactly; torch's own `SyncBatchNorm` does that on CUDA alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.ops.world import World


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the micro-batches of all ranks together (Ioffe & Szegedy 2015, arXiv:1502.03167).

    Parameters and buffers are those of `nn.BatchNorm2d`. Running statistics are moved by `update_statistics`, which the
    encoder calls once a forward pass, and not here: a pass that is computed again for its gradient must not move them.
    """

    world: World = World()
    """The ranks that are normalised together; an engine sets it."""
    frozen = False
    """Normalise by the running statistics as they are, in training too."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.rate = momentum
        self.newest: tuple[Tensor, Tensor] | None = None
        """Mean and unbiased variance (C,) of the last forward pass in training."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape; in training on all ranks together."""
        if self.frozen or not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        wide = x.float()
        mean, variance, count = self.find_moments(wide)
        self.newest = mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1))
        scale = self.weight * (variance + self.eps).rsqrt()
        wide = (wide - column(mean)) * column(scale) + column(self.bias)
        return wide.to(x.dtype)

    def find_moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of each channel over all ranks, and how many numbers that are: three times (C,).

        From the moments of each rank (Chan et al. 1979), since Σx² − (Σx)² loses what is small beside the mean.
        """
        variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        count = torch.full_like(mean, x.numel() / x.shape[1])
        own = torch.stack([mean, variance, count])  # (3, C)
        means, variances, counts = self.world.gather(own.unsqueeze(0)).unbind(1)  # (ranks, C) each
        total = counts.sum(0)
        shares = counts / total
        mean = (shares * means).sum(0)
        return mean, (shares * (variances + (means - mean).square())).sum(0), total

    @torch.no_grad()
    def update_statistics(self) -> None:
        """Move the running statistics towards the last forward pass; not where that was not finite."""
        if self.newest is None or self.running_mean is None or self.running_var is None:
            return
        finite = torch.stack(self.newest).isfinite().all()
        for running, newest in zip((self.running_mean, self.running_var), self.newest, strict=True):
            running.copy_(torch.where(finite, running.lerp(newest.to(running.dtype), self.rate), running))
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(finite)
        self.newest = None


def column(values: Tensor) -> Tensor:
    """(C,) → (1, C, 1, 1)."""
    return values.view(1, -1, 1, 1)


def sync_batch_norms(model: nn.Module, frozen: bool) -> None:
    """Put a `SyncedBatchNorm2d` with fresh weights in place of every batch norm of a model."""
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, nn.BatchNorm2d) and not isinstance(norm, SyncedBatchNorm2d):
                synced = SyncedBatchNorm2d(norm.num_features, norm.eps, norm.momentum or 0.0)
                synced.frozen = frozen
                setattr(module, name, synced)
