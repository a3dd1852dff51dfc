"""What no type can tell: values that are wrong, or contradict each other."""

from __future__ import annotations

from data_tools.errors import UserError
from data_tools.storage.objects import has_secrets, redacted
from pretrain.config.sections import Config, ProbeConfig, ValidationConfig, weigh
from pretrain.optim.config import check_optimizer, check_schedule


def check(config: Config) -> None:
    """Raise a `UserError` for values that are well-typed but wrong or contradict each other."""
    train = config.train
    if (train.steps is None) == (train.epochs is None):
        raise UserError("train.steps and train.epochs: give exactly one of them")
    if config.checkpoint.permanent_every % config.checkpoint.every:
        raise UserError(
            f"checkpoint.permanent_every={config.checkpoint.permanent_every}: must be a multiple of checkpoint.every="
            f"{config.checkpoint.every}"
        )
    refuse_secrets("init_from", config.init_from or "")
    if config.init_with != "weights" and not config.init_from:
        raise UserError(f"init_with={config.init_with}: is of a run that init_from names; name one")
    for url in config.checkpoint.targets:
        refuse_secrets("checkpoint.targets", url)
    if len(config.data.weights) < len(weigh(config.data.path)):
        raise UserError(
            f"data.path: names {next(iter(config.data.weights))} twice, by other passwords or signatures"
        )
    if not config.data.weights or any(weight <= 0 for weight in config.data.weights.values()):
        raise UserError("data.path: name at least one data set, each with a weight greater than 0")
    for name in ("temperature", "max_repeats"):
        if getattr(config.data, name) is not None and len(config.data.weights) < 2:
            raise UserError(f"data.{name}: is of several data sets, data.path names one; leave it out")
    if config.augment.source_size is not None and config.augment.on == "host":
        raise UserError(
            f"augment.source_size={config.augment.source_size}: is of images that travel to the device; set "
            "augment.on=device, or leave it out"
        )
    check_probe(config.probe)
    check_heads(config)
    check_validation(config)
    check_schedule(config.schedule, train.steps)
    check_optimizer(config.optimizer, config.schedule)
    optimizers = [config.optimizer]
    for name in config.optimizer_overrides or {}:
        optimizers.append(config.optimizer_for(name))
        check_optimizer(optimizers[-1], config.schedule, f"optimizer_overrides.{name}")
    if train.ema_decay is not None and any(optimizer.name == "schedule_free" for optimizer in optimizers):
        raise UserError(
            f"train.ema_decay={train.ema_decay}: schedule_free keeps an average of its own; leave train.ema_decay out"
        )


def check_heads(config: Config) -> None:
    """Raise a `UserError` for a width that attention heads do not share equally: `transformers` would cut it."""
    widths = {"num_attention_heads": "hidden_size", "n_head": "n_embd"}
    widths["decoder_num_attention_heads"] = "decoder_hidden_size"
    for section in ("encoder", "objective"):
        settings = getattr(config, section)
        if getattr(settings, "from_pretrained", None):
            continue  # sizes are the folder's
        for name, of in widths.items():
            heads, width = getattr(settings, name, None), getattr(settings, of, None)
            if heads is None or width is None:
                continue
            if heads < 1 or width % heads:
                near = largest_divisor(width, max(1, heads))
                raise UserError(
                    f"{section}.{name}={heads}: does not divide {section}.{of}={width}; {near} would do"
                )


def check_probe(probe: ProbeConfig) -> None:
    """Raise a `UserError` for probes that are to run and are not told on what."""
    for key, path in (("probe.train", probe.train), ("probe.test", probe.test)):
        if probe.every and not path:
            raise UserError(
                f"{key}: missing; probe.every={probe.every} needs labelled samples to learn from (probe.train) and "
                "others to be judged by (probe.test); or set probe.every=0"
            )


def check_validation(config: Config) -> None:
    """Raise a `UserError` where the held-out loss could not be measured as asked, or would not be one."""
    path, settings = config.data.validation, config.validation
    if path is None:
        if settings != ValidationConfig():
            raise UserError(
                "validation: says how to measure a held-out loss, and data.validation names no data; "
                "give data.validation=PATH"
            )
        return
    if redacted(path) in config.data.weights:
        raise UserError(
            f"data.validation={redacted(path)}: is trained on (data.path); give data that are held out"
        )
    ratio = settings.mask_ratio
    if ratio is None:
        return
    if not hasattr(config.objective, "mask_ratio"):
        raise UserError(
            f"validation.mask_ratio={ratio}: objective {config.objective.name!r} has no mask_ratio; leave it out"
        )
    if not 0 < ratio < 1:
        raise UserError(f"validation.mask_ratio={ratio}: must lie between 0 and 1")


def refuse_secrets(key: str, url: str) -> None:
    """Raise a `UserError` for a URL with a password or signature, which would stand in `config.yaml`."""
    if has_secrets(url):
        raise UserError(
            f"{key}: {redacted(url)} comes with a password or signature; give it in the storage library's own way "
            "(S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials)"
        )


def check_world_size(config: Config, world_size: int) -> None:
    """Raise a `UserError` when the ranks cannot share every global batch equally."""
    for batch in config.train.batch_sizes.all:
        final = batch == config.train.global_batch_size
        place = f"train.global_batch_size={batch}" if final else f"train.batch_size_warmup: {batch} samples"
        if batch % world_size:
            near = max(world_size, round(batch / world_size) * world_size)
            raise UserError(f"{place}: {world_size} ranks cannot share it equally; {near} would do")
        share = batch // world_size
        micro = min(config.train.micro_batch_size or share, share)
        if share % micro:
            raise UserError(
                f"train.micro_batch_size={micro}: does not divide a rank's share of {share} samples "
                f"({place}, {world_size} ranks); {largest_divisor(share, micro)} would do"
            )


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is not above `at_most`."""
    return next(n for n in range(min(number, at_most), 0, -1) if number % n == 0)
