"""The sections of a run's configuration, one dataclass each, and the whole of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from data_tools.order.batch_sizes import BatchSizes
from data_tools.schema import build_section
from data_tools.storage.objects import redacted
from data_tools.storage.settings import StorageConfig
from pretrain.augment.config import AugmentConfig
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.config.schema import Share
from pretrain.engine.config import DDPConfig, DeepSpeedConfig, DistributedConfig, FSDPConfig
from pretrain.optim.config import OptimizerConfig, ScheduleConfig
from pretrain.tracking.config import TrackingConfig


@dataclass(frozen=True)
class DataConfig:
    """Which shards, and how they become rows and batches."""

    path: str | dict[str, float] | None = None
    """Needed: a data set, or several with their weights, `{shards/a: 0.7, shards/b: 0.3}`. Weights may change when a
    run is started again; they hold from there on. Passwords and signatures in URLs are used, and written nowhere: give
    them again when the run is started again."""
    validation: str | None = None
    """Held-out data of the same kind: the loss on them is measured every `validation.every` steps."""
    mix_by: Literal["sample", "token"] = "sample"
    """What the weights are shares of."""
    temperature: NonNegativeFloat | None = None
    """Multiply each weight by the size of its data set to this power: 1 makes shares of sizes, 0.5 gives small ones
    more. None: the weights are as given."""
    max_repeats: PositiveFloat | None = None
    """How often a data set of several may be gone through in the whole run: what its weight would give it beyond goes
    to the others. None: as often as its weight says."""
    max_damage_rate: Share = 0.01
    """Share of samples that may be damaged, and replaced by others, before the run stops."""
    sequence_length: PositiveInt | None = None
    """Tokens in a row: token data sets are packed into full rows of this length."""
    workers: NonNegativeInt = 1
    """Decoding workers of each rank, which work ahead while the device trains; 0 decodes in the training thread."""
    worker_kind: Literal["thread", "process"] = "thread"
    storage: StorageConfig = StorageConfig()
    """Of remote data, those of validation and probes too."""

    @property
    def paths(self) -> dict[str, str]:
        """The data sets by name: their path or URL without what is secret in it."""
        return {redacted(path): path for path in weigh(self.path)}

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the data sets by name; one alone has all of it."""
        return {redacted(path): weight for path, weight in weigh(self.path).items()}


def weigh(path: str | dict[str, float] | None) -> dict[str, float]:
    """What `data.path` names, with its weights."""
    return dict(path) if isinstance(path, dict) else {path: 1.0} if path else {}


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large the batch, in which precision."""

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    global_batch_size: PositiveInt = 256
    batch_size_warmup: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    """Stages before it, each (global batch size, steps): [[64, 1000], [128, 1000]]. The learning rate follows its own
    schedule."""
    micro_batch_size: PositiveInt | None = None
    """Samples of one rank in one forward pass; the rest is accumulated. Default: all of the rank's share."""
    precision: Literal["fp32", "tf32", "bf16", "fp16", "fp8"] = "fp32"
    """Of matrix products; weights and optimizer states stay fp32. tf32 and fp8 need a GPU that has them."""
    compile: Literal["none", "block", "whole"] = "none"
    """`torch.compile` each block (short to compile), or each role as a whole."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What backward computes again instead of keeping it: nothing, all but matrix products, or whole blocks."""
    attention: Literal["sdpa", "eager", "flex", "varlen"] | None = None
    """Attention back end of the `transformers` layers. `varlen` computes nothing between the documents of a row: with
    torch's flash kernel on a GPU, document by document elsewhere. Default: varlen for text in 16 bits on a GPU of
    Ampere or newer, unless attention weights are dropped; else sdpa."""
    clip_grad_norm: PositiveFloat | None = None
    max_skipped_steps: PositiveInt = 20
    """Updates left out in a row (a gradient that is not finite, or a spike) after which the run gives up."""
    spike_sigma: PositiveFloat | None = None
    """Leave out an update whose gradient norm lies so many deviations above the mean of the last 128 (OLMo-core: 6)."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep an exponential moving average of the trained weights (.999, .9999): what pictures and probes look at, and
    what is released. None: no average."""
    hang_timeout: NonNegativeFloat | None = None
    """Seconds without progress after which every rank writes its stacks to RUN/stacks and ends; 0: never. Default: 0.8
    of `distributed.timeout`, and of `distributed.start_timeout` until the first step has ended."""
    gc_every: NonNegativeInt = 100
    """Steps between Python's garbage collections, on all ranks at once: one that collects alone lets the others wait.
    0 leaves it to Python."""
    deterministic: bool = False
    """Only algorithms that give the same bits every time on the same machine and set-up. Slower on a GPU."""

    @property
    def batch_sizes(self) -> BatchSizes:
        """The global batch size by position."""
        return BatchSizes(self.global_batch_size, self.batch_size_warmup)


@dataclass(frozen=True)
class ProbeConfig:
    """Online kNN, linear and few-shot probes on the frozen encoder; off while `every` is 0."""

    every: NonNegativeInt = 0
    train: str | None = None
    """Labelled samples that the probes learn from; needed, as `test` is, where `every` is not 0."""
    test: str | None = None
    """Labelled samples that they are judged by."""
    label: str = "label"
    """The sample's field that holds the class, e.g. `label`, or `json.party` for a key of its JSON member."""
    train_samples: PositiveInt = 2000
    test_samples: PositiveInt = 1000
    neighbours: PositiveInt = 10
    few_shot: NonNegativeInt = 10
    """Labels a class that ridge regression is given, over ten draws; 0: none."""
    grid: bool = False
    """Linear probes on every layer × pooling × weight decay too, trained together on one forward pass."""


@dataclass(frozen=True)
class RepresentationConfig:
    """What tells how good the encoder's features are without labels, and warns of their collapse."""

    every: NonNegativeInt | None = None
    """Steps between looks; 0: none. Default: a twelfth of the run."""
    samples: Annotated[int, Field(ge=16)] | None = None
    """Of `data.validation`, else of `data.path`, always the same. Default: a power of two from 64 to 2,048, so that all
    looks together see at most 1/32 as many samples as training."""
    metrics: tuple[Literal["rankme", "cosine", "dead", "alpha_req", "lidar", "intrinsic_dimension"], ...] = (
        "rankme",
        "cosine",
        "dead",
    )
    lidar_views: Annotated[int, Field(ge=2)] = 10
    """Random views of each sample that LiDAR compares: so many times the forward passes."""
    pictures: bool = True
    """At the first and the last look, draw the features too: a map of the samples by `probe.label`, nearest neighbours,
    of images also patch features and attention."""


@dataclass(frozen=True)
class ValidationConfig:
    """The loss on `data.validation`: the same samples with the same things hidden every time."""

    every: NonNegativeInt = 500
    """Steps between measurements; 0: none."""
    samples: PositiveInt = 2000
    """Samples, or packed rows of tokens, at most; chosen by the seed."""
    mask_ratio: float | None = None
    """Share that is hidden meanwhile (MLM is often compared at .15); default: what training hides."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run, whole. `encoder` and `objective` are checked against the schema that their `name` selects."""

    name: str = "run"
    run_dir: str | None = None
    """Where everything of this run is written; default `runs/<name>`."""
    seed: int = 0
    engine: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    distributed: DistributedConfig = DistributedConfig()
    ddp: DDPConfig = DDPConfig()
    fsdp: FSDPConfig = FSDPConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    encoder: Any
    objective: Any
    init_from: str | None = None
    """A run folder, one of its checkpoints (`RUN@STEP`), or a URL in `checkpoint.targets` of a run (or a checkpoint
    there), whose weights a new run starts from; its own checkpoints come first."""
    init_with: Literal["weights", "optimizer", "progress"] = "weights"
    """What `init_from` brings: weights alone, the states of optimizers too, or also the step and the place in the data,
    so that this run is a branch of that one (several decays from one trunk)."""
    allow_keys: tuple[str, ...] = ()
    """Patterns of tensors that `init_from` and `encoder.from_pretrained` may lack or hold in vain, e.g. `decoder.*`."""
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    optimizer_overrides: dict[str, dict[str, Any]] | None = None
    """Per optimizer of the objective, what differs from `optimizer`, e.g. `{discriminator: {lr: 4e-4}}`."""
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    probe: ProbeConfig = ProbeConfig()
    representation: RepresentationConfig = RepresentationConfig()
    validation: ValidationConfig = ValidationConfig()
    tracking: TrackingConfig = TrackingConfig()
    hooks: tuple[str | dict[str, Any], ...] = ()
    """Classes of your own that run every so many steps: `[my_file:MyHook, {name: my_file:Other, every: 500}]`, see
    docs/objectives.md."""

    @property
    def folder(self) -> Path:
        return Path(self.run_dir) if self.run_dir else Path("runs") / self.name

    def optimizer_for(self, name: str) -> OptimizerConfig:
        """The settings of one of the objective's optimizers."""
        own, base = (self.optimizer_overrides or {}).get(name, {}), asdict(self.optimizer)
        if own.get("lr") is not None:
            base.pop("lr_per_256")
        return build_section(OptimizerConfig, {**base, **own}, f"optimizer_overrides.{name}")
