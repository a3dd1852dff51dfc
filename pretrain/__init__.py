"""Self-supervised pretraining: an objective hides part of each sample, an encoder learns to see it."""

import logging

# `transformers` imports torchao where it is installed, which then warns of kernels that nothing here uses. Said here,
# before any module of this package can import it, in whatever process: a command, a rank, a data worker.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
