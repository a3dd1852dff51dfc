"""DeepSpeed ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): one DeepSpeed engine for each optimizer's `Trainee`.

Checkpoints are DeepSpeed's own, with the roles beside them as DCP, which is what a release reads. DeepSpeed loads its
format on the same number of ranks only; for another, convert it first (docs of `load`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader

from data_tools.errors import UserError
from data_tools.storage.atomic import fsync, full_disk_explained
from pretrain.config.sections import TrainConfig
from pretrain.engine.averages import WeightAverage, trained_parameters
from pretrain.engine.base import (
    SETTINGS,
    BuildOptimizer,
    Engine,
    Scale,
    detach_loss,
    do_nothing,
    total_loss,
    trainable_parameters,
    trainees,
)
from pretrain.engine.blocks import (
    check_attention,
    choose_attention,
    compile_role,
    recompute_activations,
    set_attention,
)
from pretrain.engine.config import DeepSpeedConfig, DistributedConfig
from pretrain.engine.ds_config import build_ds_config
from pretrain.engine.precision import AUTOCAST, check_precision, set_deterministic, set_matmul_precision
from pretrain.engine.saving import Files, count_bytes, hash_file, own_share, without_advice
from pretrain.engine.torch_engine import gradients_of
from pretrain.objectives.base import Batch, Loss, Objective, Phase
from pretrain.optim.build import set_rates

FOLDER = "deepspeed"
"""Where in a checkpoint DeepSpeed's own files are, one folder an optimizer."""
TAG = "state"
STALE_AFTER = 600
"""Seconds after which nobody is building an extension any more."""
READING = -1
"""Stands for us among the modules that are using a ZeRO-3 parameter, whose ids are not negative."""


class DeepSpeedEngine(Engine):
    """ZeRO 0–3 on `deepspeed.initialize`."""

    needs_group = True

    def __init__(
        self,
        train: TrainConfig,
        settings: DeepSpeedConfig | None = None,
        distributed: DistributedConfig | None = None,
    ) -> None:
        self.deepspeed = import_deepspeed()
        check_precision(train.precision)
        check_attention(train.attention, train.precision)
        if train.spike_sigma is not None:
            raise UserError(
                "train.spike_sigma: DeepSpeed decides by itself which updates it makes; use engine=ddp or fsdp"
            )
        super().__init__(distributed=distributed)
        self.train = train
        self.ds_config = build_ds_config(train, settings or DeepSpeedConfig(), self.world.size)
        if (
            self.device.type == "cpu"
        ):  # whose norms refuse narrow weights beside wide activations: autocast alone
            self.ds_config["bf16"]["enabled"] = False
        self.stage = self.ds_config["zero_optimization"]["stage"]
        self.autocast = AUTOCAST.get(train.precision)
        set_matmul_precision(train.precision)
        set_deterministic(train.deterministic)

    def prepare(
        self, objective: Objective, build_optimizer: BuildOptimizer, load: Callable[[], object] = do_nothing
    ) -> None:
        self.take_objective(objective)
        load()
        self.refuse_fp32_phases()
        attention = choose_attention(self.train, objective)
        for role in objective.roles.values():
            role.to(self.device)
            if attention:
                set_attention(role, attention)
        self.trainable = trainable_parameters(objective.roles)
        self.trainees = trainees(objective)
        self.engines: dict[str, Any] = {}
        self.postponed: list[Exception] = []
        """What this rank met while DeepSpeed was saving."""
        for name, trainee in self.trainees.items():
            for role in trainee.roles.values():
                recompute_activations(role, self.train.activation_checkpointing)
                compile_role(role, self.train.compile)
            optimizer = build_optimizer(name, dict(trainee.roles.items()))
            refuse_other_than_adam(optimizer)
            self.engines[name], *_ = self.deepspeed.initialize(
                model=trainee, optimizer=optimizer, config=self.ds_config, dist_init_required=False
            )
            for saver, work in (
                (self.engines[name].checkpoint_engine, "save"),
                (self.engines[name], "_copy_recovery_script"),
            ):
                setattr(saver, work, self.postpone_errors(getattr(saver, work)))
        if self.train.ema_decay is not None:
            self.average = WeightAverage(trained_parameters(objective.roles), self.train.ema_decay)

    def refuse_fp32_phases(self) -> None:
        phases = [phase.name for phase in self.objective.phases() if phase.fp32]
        if phases and (self.autocast or self.stage == 3):
            raise UserError(
                f"engine=deepspeed: the phase {phases[0]!r} of objective {self.objective.config.name!r} differentiates "
                "twice, in fp32, for which DeepSpeed keeps no weights; use engine=ddp or fsdp, or "
                "train.precision=fp32 with deepspeed.stage ≤ 2"
            )

    def backward(self, phase: Phase, batch: Batch, scale: Scale, last: bool) -> Loss:
        engine = self.engines[phase.optimizer]
        self.train_only(phase)
        engine.set_gradient_accumulation_boundary(last)
        others = [trainee for name, trainee in self.trainees.items() if name != phase.optimizer]
        with self.gathered(others):
            with self.autocasting():
                sums, metrics = engine(phase, batch)
            engine.backward(total_loss(sums, scale, self.world.size), scale_wrt_gas=False)
        return detach_loss(sums, metrics)

    def step(
        self, phase: Phase, lr_factor: float, max_norm: float | None, decay_factor: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        engine = self.engines[phase.optimizer]
        optimizer = engine.basic_optimizer
        set_rates(optimizer, lr_factor, decay_factor)
        norm = None if self.wrapped(engine) else self.replicated_norm(optimizer)
        engine.step()
        if norm is None:
            found = engine.get_global_grad_norm()
            norm = torch.as_tensor(found if found is not None else 0.0, device=self.device).detach().float()
        # DeepSpeed's own optimizers leave out an update whose gradient is not finite, and so do we in stage 0.
        skipped = (~norm.isfinite()).float()
        return norm, skipped

    def wrapped(self, engine: Any) -> bool:
        """Whether DeepSpeed steps through an optimizer of its own (all but stage 0 in fp32)."""
        return engine.optimizer is not engine.basic_optimizer

    def replicated_norm(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Stage 0 in fp32 is plain data parallelism: the norm, and the update left out where it is not finite."""
        norm = torch.nn.utils.get_total_norm(gradients_of(optimizer))
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        return norm

    @contextmanager
    def gathered(self, modules: list[Any]) -> Iterator[None]:
        """Within it, modules can be called and read outside their DeepSpeed engine: stage 3 gathers them.

        DeepSpeed frees a parameter once no module uses it any more; so we count among its users meanwhile.
        """
        if self.stage < 3:
            yield
            return
        parameters = [p for module in modules for p in module.parameters()]
        with self.deepspeed.zero.GatheredParameters(parameters):
            for parameter in parameters:
                parameter.ds_active_sub_modules.add(READING)
            try:
                yield
            finally:
                for parameter in parameters:
                    parameter.ds_active_sub_modules.clear()

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        with self.gathered(list(self.trainees.values())):
            yield

    def after_step(self, phase: Phase, step: int, skipped: Tensor) -> None:
        own = type(self.objective).after_step is not Objective.after_step
        with self.unsharded() if own else nullcontext():
            super().after_step(phase, step, skipped)

    def state_dict(self) -> dict[str, Any]:
        """The roles alone, whole: what optimizers keep is in DeepSpeed's own form."""
        with self.unsharded():
            return {
                "roles": {
                    name: {key: value.detach().float().clone() if value.is_floating_point() else value.clone()
                           for key, value in module.state_dict().items()}
                    for name, module in self.objective.roles.items()
                },
                **self.averages(),
            }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the roles; rank 0's values are shared out in stage 3."""
        with ExitStack() as stack:
            if self.stage == 3:
                parameters = [p for trainee in self.trainees.values() for p in trainee.parameters()]
                stack.enter_context(self.deepspeed.zero.GatheredParameters(parameters, modifier_rank=0))
            for name, module in self.objective.roles.items():
                module.load_state_dict(state["roles"][name])
        if self.average:
            self.average.load_state_dict(state["averages"])

    def checkpoint_bytes(self) -> int:
        """Beside the roles, DeepSpeed keeps three numbers of four bytes for each: Adam's two, and the weight again."""
        return 4 * super().checkpoint_bytes()

    def start_saving(self, folder: Path) -> Callable[[], Files]:
        """DeepSpeed writes from its own buffers, so all of it happens now; what is returned hashes its files.

        The roles are written as DCP beside them. Only DeepSpeed knows which rank has written which of its files, so the
        ranks share them.
        """
        self.start_saving_group()
        state = self.state_dict()
        needed = 4 * count_bytes(state)
        for name, engine in self.engines.items():
            with full_disk_explained(folder, needed):
                self.save_engine(engine, folder / FOLDER / name)
        own = own_share(state, self.world.rank, self.world.size)
        files = self.write_state(own, folder, needed)
        return lambda: {**files, **self.hash_own_format(folder)}

    def save_engine(self, engine: Any, folder: Path) -> None:
        """Have DeepSpeed write its files of one optimizer. On all ranks together; raises on all where one cannot write.

        Within, its ranks wait for each other: one that meets an error there goes on to the end, and tells it then.
        """
        if self.world.rank == 0:
            self.postpone_errors((folder / TAG).mkdir)(parents=True)
        self.raise_postponed()
        engine.save_checkpoint(str(folder), tag=TAG, client_state=universal_info(), save_latest=False)
        if self.world.rank == 0:
            self.postpone_errors((folder / "latest").write_text)(TAG)
        self.raise_postponed()

    def postpone_errors(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, whose errors are kept for `raise_postponed`."""

        def postponing(*arguments: Any, **settings: Any) -> Any:
            try:
                return work(*arguments, **settings)
            except Exception as error:
                self.postponed.append(error)

        return postponing

    def raise_postponed(self) -> None:
        """Raise on every rank what one of them has met since the last call. Called on all ranks together."""
        own, self.postponed = self.postponed, []
        told = self.gather(str(own[0]) if own else None)
        if own:
            raise own[0]
        for rank, fault in enumerate(told):
            if fault is not None:
                raise UserError(f"rank {rank}: {fault}")

    def hash_own_format(self, folder: Path) -> Files:
        """This rank's share of DeepSpeed's files, hashed and made durable."""
        paths = sorted(path for path in (folder / FOLDER).rglob("*") if path.is_file())
        files = {}
        for path in paths[self.world.rank :: self.world.size]:
            files[path.relative_to(folder).as_posix()] = path.stat().st_size, hash_file(path)
            fsync(path)
            self.count_written(path.stat().st_size)
        return files

    def load(self, folder: Path) -> None:
        """Take back what `save` wrote, on as many ranks as wrote it.

        On another number of ranks, convert each optimizer's folder with `python -m deepspeed.checkpoint.ds_to_universal
        --input_folder <folder>/deepspeed/<optimizer>/state --output_folder <same>/deepspeed/<optimizer>/universal`; a
        checkpoint that has been converted is loaded from there.
        """
        # Roles that no optimizer trains are not DeepSpeed's: they come from the DCP part, then DeepSpeed takes its own.
        state = self.state_dict()
        with without_advice():
            dcp.load(state, storage_reader=FileSystemReader(folder), no_dist=self.world.size == 1)
        self.load_state_dict(state)
        for name, engine in self.engines.items():
            groups = engine.basic_optimizer.param_groups
            own = [{key: value for key, value in group.items() if f".{key}" in SETTINGS} for group in groups]
            self.load_engine(engine, folder / FOLDER / name)
            for group, settings in zip(engine.basic_optimizer.param_groups, own, strict=True):
                group.update(settings)

    def load_engine(self, engine: Any, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(
                f"{folder}: not there, so engine=deepspeed did not write this checkpoint; go on with the engine that "
                "did, or start from its weights with encoder.from_pretrained"
            )
        universal = (folder / "universal").is_dir()
        tag = "universal" if universal else TAG
        engine._config.load_universal_checkpoint = universal
        try:
            loaded, _ = engine.load_checkpoint(str(folder), tag=tag)
        except Exception as error:
            if "ZeRORuntimeException" not in type(error).__name__:
                raise
            raise UserError(
                f"{folder}: was saved on another number of ranks than these {self.world.size}; convert it first: "
                f"python -m deepspeed.checkpoint.ds_to_universal --input_folder {folder / TAG} "
                f"--output_folder {folder / 'universal'}"
            ) from None
        assert loaded is not None


def import_deepspeed() -> Any:
    """The `deepspeed` module, told that this machine computes on what torch computes on, and quiet.

    Raises:
        UserError: it is not installed.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # it asks for one even of a process that is alone
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            'engine=deepspeed: deepspeed is not installed; pip install --no-build-isolation "masquerade[deepspeed]"'
        ) from None
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    remove_stale_build_locks()
    return deepspeed


def remove_stale_build_locks() -> None:
    """Delete the lock of a build that was killed: torch would wait for it for ever, and a build takes a minute."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.glob("**/deepspeed_*/lock"):
        with suppress(FileNotFoundError):  # another rank was faster
            if time.time() - lock.stat().st_mtime > STALE_AFTER:
                lock.unlink()


def universal_info() -> dict[str, Any]:
    """What `ds_to_universal` wants to find in a checkpoint; our models have no special parameters."""
    from deepspeed.checkpoint import constants

    version = {constants.UNIVERSAL_CHECKPOINT_VERSION_KEY: constants.UNIVERSAL_CHECKPOINT_VERSION_VALUE}
    return {constants.UNIVERSAL_CHECKPOINT_INFO: version}


def refuse_other_than_adam(optimizer: torch.optim.Optimizer) -> None:
    """ZeRO steps flat pieces of weights of its own: of an optimizer that looks at matrices, at layers or at a second
    point, it would make something else."""
    if not isinstance(optimizer, (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)):
        name = {"ScheduleFree": "schedule_free"}.get(
            type(optimizer).__name__, type(optimizer).__name__.lower()
        )
        raise UserError(
            f"optimizer.name={name}: needs whole parameters, which ZeRO cuts into flat pieces of its own; use "
            "optimizer.name=adamw, or engine=fsdp"
        )
