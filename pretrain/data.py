"""The data of a run: one data set, or several mixed by weight, as its stream and as this rank's batches."""

from __future__ import annotations

import torch

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.open import open_dataset
from data_tools.dataset.overlap import refuse_shared
from data_tools.errors import UserError
from data_tools.storage.objects import redacted
from data_tools.stream.loader import Loader
from data_tools.stream.mixed import Mixture
from data_tools.stream.mixing_plan import MixingPlan
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream
from pretrain.config.sections import Config, DataConfig, TrainConfig
from pretrain.encoders.text.tokenizer import find_tokenizer, fingerprint_of
from pretrain.engine.base import World
from pretrain.objectives.base import Objective
from pretrain.optim.config import check_schedule

Sources = dict[str, Dataset]
"""Data sets by name (`DataConfig.paths`); a run over one has one."""


def open_sources(data: DataConfig) -> Sources:
    """Open every data set that the configuration names.

    Raises:
        UserError: one is not there, or their token numbers are those of different tokenizers.
    """
    sources = {name: open_dataset(path, fetching=data.storage.fetching) for name, path in data.paths.items()}
    tokenizers = {path: fingerprint_of(find_tokenizer(dataset)) for path, dataset in sources.items()}
    first, *others = tokenizers
    for other in others:
        if tokenizers[other] != tokenizers[first]:
            raise UserError(
                f"data.path: {first} and {other} were tokenized by different tokenizers; tokenize both with the same"
            )
    return sources


def open_validation(data: DataConfig, sources: Sources) -> Dataset:
    """Open the data set that `data.validation` names.

    Raises:
        UserError: it is not there, has samples that are trained on, is of another kind, or has another tokenizer.
    """
    dataset = open_dataset(data.validation or "", fetching=data.storage.fetching)
    path = redacted(data.validation or "")
    for name, source in sources.items():
        if dataset.fingerprint == source.fingerprint:
            raise UserError(
                f"data.validation={path}: holds the same samples as {name}, which is trained on (data.path); give data "
                "that are held out"
            )
        refuse_shared(source, dataset, f"data.path={name}", f"data.validation={path}")
    trained = set(first_of(sources).fields)
    if trained.isdisjoint(dataset.fields):
        raise UserError(
            f"data.validation={path}: its samples have no {' and no '.join(sorted(trained))}, as those of "
            f"{next(iter(sources))} have; they have: {', '.join(dataset.fields)}"
        )
    if fingerprint_of(find_tokenizer(dataset)) != fingerprint_of(find_tokenizer(first_of(sources))):
        raise UserError(
            f"data.validation={path}: was tokenized by another tokenizer than {next(iter(sources))}; tokenize it with "
            "the same"
        )
    return dataset


def first_of(sources: Sources) -> Dataset:
    """The data set that stands for all where only its kind matters: its tokenizer, its channels."""
    return next(iter(sources.values()))


def build_stream(config: Config, sources: Sources) -> Stream | PackedStream | Mixture:
    """The samples in this run's order; tokens packed into rows where a row length is set."""
    streams: dict[str, Stream | PackedStream] = {}
    for path, dataset in sources.items():
        stream = Stream(dataset, seed=config.seed)
        length = config.data.sequence_length
        streams[path] = PackedStream(stream, length=length) if length else stream
    if len(streams) == 1:
        return next(iter(streams.values()))
    mixture = Mixture(streams, config.data.weights, config.seed, config.data.mix_by)
    if plan := plan_mixture(config, mixture.samples_per_epoch):
        mixture.plan_weights(plan, 0)
    return mixture


def plan_mixture(config: Config, samples_per_epoch: int) -> MixingPlan | None:
    """How the weights come from the sizes of the data sets and the length of the run; None where they are as given."""
    data, train = config.data, config.train
    if data.temperature is None and data.max_repeats is None:
        return None
    batches = train.batch_sizes
    steps = train.steps or batches.steps_for((train.epochs or 0) * samples_per_epoch)
    return MixingPlan(data.weights, batches.position(steps), data.temperature, data.max_repeats)


def describe_mixture(loader: Loader) -> list[str]:
    """A line for each data set whose share was planned: what it comes to, and how often it is repeated."""
    mixture = loader.stream
    if not isinstance(mixture, Mixture) or mixture.plan is None:
        return []
    positions, taken = mixture.plan.positions, mixture.order.taken(mixture.plan.positions)
    return [
        f"data.path: {name}: {samples / positions:.2%} of {positions:,} samples, each {samples / size:.3g} times"
        for (name, stream), samples in zip(mixture.streams.items(), taken.tolist(), strict=True)
        if (size := stream.samples_per_epoch)
    ]


def build_loader(
    config: Config, objective: Objective, sources: Sources, world: World, node_size: int = 1
) -> Loader:
    """This rank's share of every global batch, of which a node's `node_size` ranks fetch what they need together.

    Called before an engine prepares the objective.
    """
    own = objective.without_networks()
    return Loader(
        build_stream(config, sources),
        own.make_example,
        collate=own.collate,
        seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        node_size=node_size,
        workers=config.data.workers,
        worker_kind=config.data.worker_kind,
        pin_memory=torch.cuda.is_available(),
        max_damage_rate=config.data.max_damage_rate,
        batch_size_warmup=config.train.batch_size_warmup,
    )


def resume_loader(loader: Loader, state: dict[str, object], data: DataConfig) -> None:
    """Go on where `state` was taken; other weights than then hold from there on, and the history keeps both."""
    plan = loader.stream.plan if isinstance(loader.stream, Mixture) else None
    loader.load_state_dict(state)
    if not isinstance(loader.stream, Mixture):
        return
    if plan is not None:
        if loader.stream.plan != plan:
            loader.plan_weights(plan)
    elif loader.stream.plan is not None or loader.stream.history[-1][1] != data.weights:
        loader.set_weights(data.weights)


def warn_of_few_samples(loader: Loader, train: TrainConfig, steps: int) -> str | None:
    """A line for the user where a batch is larger than all the data; else None."""
    samples, batch = loader.stream.samples_per_epoch, train.global_batch_size
    if batch <= samples:
        return None
    epochs = f"; train.epochs={train.epochs:g} come to {steps:,} step(s)" if train.epochs else ""
    return (
        f"train.global_batch_size={batch}: data.path has {samples:,} sample(s) only, so each is seen "
        f"{batch / samples:.3g} times a step{epochs}; lower train.global_batch_size"
    )


def count_steps(config: Config, sources: Sources) -> int:
    """Steps of the run: as set, or what its epochs come to.

    Raises:
        UserError: fewer than the schedule needs.
    """
    steps = config.train.steps
    if steps is None:
        samples = (config.train.epochs or 0) * build_stream(config, sources).samples_per_epoch
        steps = max(1, config.train.batch_sizes.steps_for(samples))
    check_schedule(config.schedule, steps)
    return steps
