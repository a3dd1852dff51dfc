"""Who sees whom in rows of several documents, told to each attention back end as it wants to hear it.

`transformers` hands a mask of four dimensions to every layer as it is, whatever it is made of. So each back end gets a
mask of its own making: booleans (sdpa), numbers to add (eager), blocks (flex), or only where documents begin (varlen).
None of them makes the host wait for the device, given that the loader has counted the documents of varlen's rows.
"""

from __future__ import annotations

import inspect
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

VARLEN = "varlen"
"""The name under which `transformers` knows `varlen_attention`."""
FLEX = "flex_attention"

GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether torch's varlen kernel shares heads of keys and values by itself (not in 2.11)."""


def attention_mask(
    batch: dict[str, Any], backend: str, window: int | None = None, causal: bool = False
) -> Tensor | BlockMask:
    """What the layers take as the mask of a batch of rows: `document_ids` (B, L), and `document_starts` (B, K + 1).

    Without `document_starts` varlen looks for them on the device, and the host waits.
    """
    if backend == VARLEN:  # a layer knows its window, and whether it is causal
        starts = batch.get("document_starts")
        return join_rows(find_document_starts(batch["document_ids"]) if starts is None else starts, batch)
    return document_mask(batch["document_ids"], backend, window, causal)


def document_mask(
    document_ids: Tensor, backend: str, window: int | None = None, causal: bool = False
) -> Tensor | BlockMask:
    """Every token sees its document, no farther than `window` tokens to either side where one is given.

    Args:
        document_ids: (B, L), the number of the document in its row, 0 for padding. Padding sees padding: none is blind.
        backend: the model's `config._attn_implementation`, any but varlen.
        causal: nothing of what follows is seen.
    """
    if backend == FLEX:
        return document_blocks(document_ids, window, causal)
    seen = same_document(document_ids)  # (B, 1, L, L)
    if window is not None or causal:
        reach = -1 if window is None else window
        seen = seen & window_mask(seen.shape[-1], (reach, 0 if causal else reach), seen.device)
    if backend == "eager":  # adds the mask to the scores, where true would be a mere 1
        return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, torch.finfo(torch.float32).min)
    return seen


def same_document(document_ids: Tensor) -> Tensor:
    """`document_ids` (B, L) → (B, 1, L, L), true within a document."""
    return (document_ids.unsqueeze(2) == document_ids.unsqueeze(1)).unsqueeze(1)


def window_mask(length: int, window: tuple[int, int], device: torch.device) -> Tensor:
    """(L, L), true where a key lies at most so many tokens to the left and right of its query; -1 is no limit."""
    at = torch.arange(length, device=device)
    left, right = (length if limit < 0 else limit for limit in window)
    offset = at - at.unsqueeze(1)  # (L, L), of the key from the query
    return (offset >= -left) & (offset <= right)


def document_blocks(document_ids: Tensor, window: int | None, causal: bool = False) -> BlockMask:
    """FlexAttention's mask (Dong et al. 2024, arXiv:2412.05496): blocks in which nobody sees anybody are skipped."""
    rows, length = document_ids.shape
    reach = length if window is None else window

    def seen(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (query - key <= reach) & (key - query <= (0 if causal else reach))
        return (document_ids[row, query] == document_ids[row, key]) & near

    blocks: Any = compiled_create_block_mask()(seen, rows, None, length, length, document_ids.device)
    blocks.ndim = 4  # transformers' GPT-2 asks every mask for it
    return blocks


@cache
def compiled_create_block_mask() -> Any:
    """Uncompiled it would hold the dense (B, L, L) mask. Made on demand: importing the compiler takes seconds."""
    return torch.compile(create_block_mask)


def find_document_starts(document_ids: Tensor) -> Tensor:
    """Where the documents of each row begin: (B, L) → (B, K + 1) int32, with L where a row has fewer than K.

    A document is a run of one number within a row; the padding of a row is a document too. K, the most documents of
    any row, is asked of the device that `document_ids` lie on: the loader asks the host.
    """
    length = document_ids.shape[1]
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]  # (B, L)
    at = torch.arange(length, device=begins.device).where(begins, length)  # (B, L)
    most = int(begins.sum(1).max())
    return F.pad(at.sort(1).values[:, :most], (0, 1), value=length).int()


def join_rows(document_starts: Tensor, batch: dict[str, Any]) -> Tensor:
    """The same with the rows laid end to end, as kernels want it: (B, K + 1) → (1, 1, 1, B·K + 1) int32, ascending.

    A row with fewer than K documents has empty ones at its end.
    """
    rows, length = batch["document_ids"].shape
    offsets = torch.arange(0, rows * length, length, dtype=torch.int32, device=document_starts.device)
    starts = (document_starts[:, :-1] + offsets.unsqueeze(1)).flatten()  # (B·K,)
    return F.pad(starts, (0, 1), value=rows * length).view(1, 1, 1, -1)


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within documents that lie end to end, as `transformers` calls it; no work is done between documents.

    Args:
        query: (B, H, L, D); `key` and `value` may have fewer heads, each for a group of the query's.
        attention_mask: of `join_rows`. Any other, or none, makes this `transformers`' sdpa: images and decoders
            have no documents.
        sliding_window: one more than what a token sees to either side (`transformers`' way of counting).
    Returns:
        (B, L, H, D), and no weights.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if sliding_window is not None:
        window = (sliding_window - 1, sliding_window - 1)
    else:
        window = (-1, 0 if module.is_causal else -1)
    rows, _, length, _ = query.shape
    # Rotary embeddings in fp32 widen queries and keys under autocast, which knows nothing of varlen_attn.
    q, k, v = (x.to(value.dtype).transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # (B·L, H, D)
    starts = attention_mask.flatten()  # (N + 1,)
    if has_kernel(q):
        # No document is longer than a row: this bound costs no wait for the device and no recompilation.
        if not GROUPED:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped: Any = {"enable_gqa": True} if GROUPED else {}
        out: Any = varlen_attn(
            q, k, v, starts, starts, length, length, scale=scaling, window_size=window, **grouped
        )
    else:
        out = attend_by_document(q, k, v, starts, window, scaling)
    return out.unflatten(0, (rows, length)), None


def has_kernel(query: Tensor) -> bool:
    """Whether torch's varlen flash kernel computes this (its checks are in ATen's flash_api.cpp)."""
    narrow = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and narrow and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256


@torch.compiler.disable  # as many calls as there are documents, and other ones in every batch
def attend_by_document(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, window: tuple[int, int], scaling: float | None
) -> Tensor:
    """The mathematics of `varlen_attn` on any device and in any precision: (T, H, D) → (T, H, D)."""
    lengths = [n for n in starts.diff().tolist() if n]
    seen = window_mask(max(lengths), window, q.device) if window[0] >= 0 else None  # causal needs none
    attend: Any = partial(
        F.scaled_dot_product_attention, is_causal=window == (-1, 0), scale=scaling, enable_gqa=True
    )
    documents = [x.transpose(0, 1).unsqueeze(0).split(lengths, dim=2) for x in (q, k, v)]  # each (1, H, n, D)
    out = [
        attend(*document, attn_mask=None if seen is None else seen[:n, :n])
        for n, *document in zip(lengths, *documents, strict=True)
    ]
    return torch.cat(out, dim=2).squeeze(0).transpose(0, 1)  # (T, H, D)


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, sdpa_mask)  # for models that nobody tells of documents
