"""Best fit, piece by piece: the packing that saved states and tables of all runs depend on, as it was first written."""

import numpy as np


def best_fit_by_hand(lengths, length, window=4096):
    """(row_start, document, start, size) of the rows that documents of ``lengths`` make."""
    lengths = np.asarray(lengths, dtype=np.int64)
    pieces = -(-lengths // length)
    document = np.repeat(np.arange(len(lengths)), pieces)
    start = (np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * length
    size = np.minimum(lengths[document] - start, length)
    rows, table = 0, []
    for first in range(0, len(lengths), window):
        here = (document >= first) & (document < first + window)
        packed, used = _best_fit(document[here], start[here], size[here], length, length // 128)
        table += [(rows + row, d, at, n) for row, d, at, n in packed]
        rows += used
    table = np.array(table, dtype=np.int64).reshape(-1, 4)
    return np.searchsorted(table[:, 0], np.arange(rows + 1)), table[:, 1], table[:, 2], table[:, 3]


def _best_fit(document, start, size, length, tolerance):
    """(pieces in the order of their rows, number of rows) of one window."""
    pools = [[] for _ in range(length + 1)]  # (document, start) of each size
    for d, at, n in zip(document.tolist(), start.tolist(), size.tolist(), strict=True):
        pools[n].append((d, at))
    counts = np.array([len(pool) for pool in pools])
    left, total = len(size), int(size.sum())
    pieces = []
    row = 0
    while left:
        room = length
        chosen = [int(np.flatnonzero(counts)[-1])]
        while chosen:
            for n in chosen:
                d, at = pools[n].pop()
                counts[n] -= 1
                pieces.append((row, d, at, n))
                left, total, room = left - 1, total - n, room - n
            chosen = _next_sizes(counts, room, left, total) if left and room else []
            if not chosen and left and room > tolerance:  # nothing fits: cut the largest to fill the row
                n = int(np.flatnonzero(counts)[-1])
                d, at = pools[n].pop()
                pieces.append((row, d, at, room))
                pools[n - room].append((d, at + room))
                counts[n] -= 1
                counts[n - room] += 1
                total -= room
        row += 1
    return pieces, row


def _next_sizes(counts, room, left, total):
    """Sizes of the pieces to put next into a row with ``room`` slots; none when nothing fits."""
    available = np.flatnonzero(counts[: room + 1])
    if not len(available):
        return []
    if 2 * room * left >= 5 * total:  # room for two and a half average pieces, or more
        target = room // ((2 * room * left + total) // (2 * total))
        return [int(available[np.abs(available - target).argmin()])]
    partner = (
        np.searchsorted(available, room - available, side="right") - 1
    )  # the largest that still fits beside each
    alone = (partner < 0) | ((available[partner] == available) & (counts[available] < 2))
    sums = available + np.where(alone, 0, available[partner])
    best = int(sums.argmax())
    return [int(available[best])] if alone[best] else [int(available[best]), int(available[partner[best]])]
