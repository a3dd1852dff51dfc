"""What devices can do at most: dense matrix products without sparsity, from the vendors' data sheets."""

from __future__ import annotations

import torch

TERA = 1e12
PEAK: dict[str, dict[str, float]] = {
    # NVIDIA data sheets; figures with sparsity are halved.
    "GB200": {"fp32": 80, "tf32": 1250, "bf16": 2500, "fp8": 5000},
    "B200": {"fp32": 75, "tf32": 1125, "bf16": 2250, "fp8": 4500},
    "H200": {"fp32": 67, "tf32": 494.7, "bf16": 989.4, "fp8": 1978.9},
    "GH200": {"fp32": 67, "tf32": 494.7, "bf16": 989.4, "fp8": 1978.9},
    "H100 NVL": {"fp32": 60, "tf32": 417.5, "bf16": 835.5, "fp8": 1670.5},
    "H100 PCIE": {"fp32": 51, "tf32": 378, "bf16": 756.5, "fp8": 1513},
    "H100": {"fp32": 67, "tf32": 494.7, "bf16": 989.4, "fp8": 1978.9},
    "H800": {"fp32": 67, "tf32": 494.7, "bf16": 989.4, "fp8": 1978.9},
    "A100": {"fp32": 19.5, "tf32": 156, "bf16": 312},
    "A800": {"fp32": 19.5, "tf32": 156, "bf16": 312},
    "L40S": {"fp32": 91.6, "tf32": 183, "bf16": 362, "fp8": 733},
    "L40": {"fp32": 90.5, "tf32": 90.5, "bf16": 181, "fp8": 362},
    "L4": {"fp32": 30.3, "tf32": 60, "bf16": 121, "fp8": 242.5},
    "A40": {"fp32": 37.4, "tf32": 74.8, "bf16": 149.7},
    "A30": {"fp32": 10.3, "tf32": 82, "bf16": 165},
    "A10G": {"fp32": 31.5, "tf32": 35, "bf16": 70},
    "A10": {"fp32": 31.2, "tf32": 62.5, "bf16": 125},
    "RTX 6000 ADA": {"fp32": 91.1, "tf32": 182.1, "bf16": 364.2, "fp8": 728.5},
    "RTX A6000": {"fp32": 38.7, "tf32": 77.4, "bf16": 154.8},
    "RTX 4090": {"fp32": 82.6, "tf32": 82.6, "bf16": 165.2, "fp8": 330.3},
    "RTX 3090": {"fp32": 35.6, "tf32": 35.6, "bf16": 71},
    "V100": {"fp32": 15.7, "fp16": 125},
    "T4": {"fp32": 8.1, "fp16": 65},
    # AMD Instinct data sheets; an MI250X is two devices.
    "MI325X": {"fp32": 163.4, "tf32": 653.7, "bf16": 1307.4, "fp8": 2614.9},
    "MI300X": {"fp32": 163.4, "tf32": 653.7, "bf16": 1307.4, "fp8": 2614.9},
    "MI250X": {"fp32": 47.9, "bf16": 191.5},
}
"""TFLOP/s by a part of the device's name; the longest name that fits counts. fp16 is as fast as bf16 unless told."""


def peak_flops(name: str, precision: str) -> float | None:
    """Peak FLOP/s of a device (`torch.cuda.get_device_name()`) in a precision; None where the table has none."""
    words = name.upper().replace("-", " ")
    fitting = [
        key for key in PEAK if f" {key} " in f" {words} " or words.endswith(key) or key in words.split()
    ]
    if not fitting:
        return None
    row = PEAK[max(fitting, key=len)]
    tera = row.get(precision, row.get("bf16") if precision == "fp16" else None)
    return None if tera is None else tera * TERA


def device_peak(device: torch.device, precision: str, setting: float | None) -> float | None:
    """Peak FLOP/s of this rank's device: as set (in TFLOP/s), else from the table; a CPU has none."""
    if setting is not None:
        return setting * TERA
    return peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
