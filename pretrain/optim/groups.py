"""Parameter groups: which parameters share weight decay, learning-rate ratio and treatment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from data_tools.errors import UserError, nearest
from pretrain.config.sections import Config
from pretrain.encoders.base import Encoder
from pretrain.engine.blocks import find_blocks
from pretrain.objectives.base import Objective
from pretrain.optim.config import OptimizerConfig, ParameterRule


@dataclass(frozen=True)
class Trained:
    """A trainable parameter, with what groups are made by."""

    name: str
    """`<role>.<parameter>`, the same on every engine."""
    parameter: nn.Parameter
    depth_ratio: float
    """What layer-wise decay leaves of the learning rate."""
    decayed: bool
    is_matrix: bool
    """More than a vector, whatever dimensions that is stored with (GRN's is (1, 1, 1, C)), and no learned token."""
    is_hidden: bool
    """A matrix within a block, not of a convolution that treats channels apart."""


def parameter_groups(roles: dict[str, nn.Module], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Group trainable parameters that are treated alike, in a fixed order."""
    groups: dict[tuple[tuple[str, float], ...], list[nn.Parameter]] = {}
    for trained in trained_parameters(roles, config.layer_decay):
        key = tuple(group_settings(trained, config).items())
        groups.setdefault(key, []).append(trained.parameter)
    return [
        {"params": parameters, **dict(key)} for key, parameters in sorted(groups.items(), key=lambda g: g[0])
    ]


def group_settings(trained: Trained, config: OptimizerConfig) -> dict[str, float]:
    """Weight decay, learning-rate ratio, and what else the optimizer asks of a group.

    Vectors and scalars (biases, norms), tokens and embeddings are not decayed, as in BEiT's and MAE's fine-tuning code.
    """
    decay = config.weight_decay if trained.decayed else 0.0
    settings = {
        "weight_decay": by_rule(config.rules, trained.name, "weight_decay", decay),
        "lr_ratio": trained.depth_ratio * by_rule(config.rules, trained.name, "lr_ratio", 1.0),
    }
    if config.name == "muon":
        settings["muon"] = uses_muon(trained, config)
    if config.name in ("lamb", "lars"):
        settings["adapted"] = trained.is_matrix
    return settings


def uses_muon(trained: Trained, config: OptimizerConfig) -> bool:
    use = by_rule(config.rules, trained.name, "use", "muon" if trained.is_hidden else "adamw")
    if use == "muon" and trained.parameter.ndim < 2:
        raise UserError(
            f"optimizer.rules: use=muon matches {trained.name!r}, which is no matrix (shape "
            f"{list(trained.parameter.shape)}); narrow the pattern, or put a rule with use=adamw before it"
        )
    return use == "muon"


def by_rule(rules: tuple[ParameterRule, ...], name: str, setting: str, default: Any) -> Any:
    """What the first rule that matches `name` and has this setting gives it."""
    for rule in rules:
        value = getattr(rule, setting)
        if value is not None and fnmatchcase(name, rule.match):
            return value
    return default


def trained_parameters(roles: dict[str, nn.Module], layer_decay: float | None) -> Iterator[Trained]:
    """Every trainable parameter once; one that two roles share goes by its name in the first."""
    seen: set[nn.Parameter] = set()
    for role_name, role in roles.items():
        ratios = layer_ratios(role, layer_decay)
        embeddings = {id(m.weight) for m in role.modules() if isinstance(m, nn.Embedding)}
        hidden = hidden_weights(role)
        for name, parameter in role.named_parameters():
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            weight = parameter.ndim >= 2 and not is_token(name)
            embedding = id(parameter) in embeddings
            matrix = weight and sum(size > 1 for size in parameter.shape) > 1
            yield Trained(
                f"{role_name}.{name}",
                parameter,
                depth_ratio=ratios.get(id(parameter), 1.0),
                decayed=weight and not embedding,
                is_matrix=matrix,
                is_hidden=matrix and not embedding and id(parameter) in hidden,
            )


def is_token(name: str) -> bool:
    """Learned tokens and positions have two or more dimensions but are no matrices."""
    return name.endswith(
        (
            "cls_token",
            "mask_token",
            "register_tokens",
            "position_embeddings",
            "relative_position_bias_table",
            "logit_scale",
        )
    )


def hidden_weights(role: nn.Module) -> set[int]:
    """Ids of the parameters within blocks, without those of grouped convolutions: one filter a channel is no matrix."""
    modules = [module for block in find_blocks(role) for module in block.modules()]
    return {
        id(parameter)
        for module in modules
        if getattr(module, "groups", 1) == 1
        for parameter in module.parameters(recurse=False)
    }


def layer_ratios(role: nn.Module, decay: float | None) -> dict[int, float]:
    """Learning-rate ratio by parameter id: decay^(distance from the top); what precedes the blocks lies one below.

    Only encoders have blocks; everything else learns at full rate (BEiT, arXiv:2106.08254).
    """
    if decay is None or not isinstance(role, Encoder) or not role.blocks():
        return {}
    blocks = role.blocks()
    depth = len(blocks)
    ratios = {id(p): decay ** (depth + 1) for p in role.parameters()}
    for i, block in enumerate(blocks):
        ratios |= {id(p): decay ** (depth - i) for p in block.parameters()}
    return ratios | {id(p): 1.0 for module in role.after_blocks() for p in module.parameters()}


def check_rules(config: Config, objective: Objective) -> None:
    """Raise a `UserError` for a rule that matches no parameter of any optimizer that has it, or settings of none."""
    optimizers = list(dict.fromkeys(phase.optimizer for phase in objective.phases()))
    for name in config.optimizer_overrides or {}:
        if name not in optimizers:
            raise UserError(
                f"optimizer_overrides.{name}: {config.objective.name} has no such optimizer;"
                f"{nearest(name, optimizers)} known: {', '.join(optimizers)}"
            )
    reached: dict[ParameterRule, list[str]] = {}
    for phase in objective.phases():
        roles = {name: objective.roles[name] for name in phase.trains}
        names = [trained.name for trained in trained_parameters(roles, None)]
        for rule in config.optimizer_for(phase.optimizer).rules:
            reached.setdefault(rule, []).extend(names)
    for rule, names in reached.items():
        if not any(fnmatchcase(name, rule.match) for name in names):
            near = get_close_matches(rule.match.replace("*", ""), names, n=1, cutoff=0.0)
            raise UserError(
                f"optimizer.rules: {rule.match!r} matches no trained parameter; the nearest is {near[0]!r}"
            )
