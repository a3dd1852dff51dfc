"""Initial weights that are drawn after sharding: the bits that building the whole model would give, a tensor at a time.

A model's constructors run under a `Recorder`: floating-point tensors that they make have shapes but no memory (torch's
meta device), and what is done to them is written down instead. Once the model is sharded, `Recording.play` does it and
hands each tensor over as soon as it is finished. Draws keep their order, those that a later one overwrites included,
since one generator serves them all: so the weights are those that one process gets from the same seed, on any number
of ranks, and a rank never holds more than the tensor in hand beside its shards. (After torchdistX's deferred_init.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import init
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

aten = torch.ops.aten
UNSET = {aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.new_empty_strided}
"""Make a tensor and give it no value."""
FACTORIES = {aten.empty, aten.empty_strided, aten.zeros, aten.ones, aten.full, aten.rand, aten.randn}
"""Make a tensor out of nothing. Others (`arange`, `tensor`) make tables, which are small and kept as they are."""
RANDOM = {aten.rand, aten.randn, aten.normal_, aten.uniform_, aten.exponential_}
"""Draw as often as their shape says, whatever was in the tensor: one that is overwritten later can be drawn into
anything."""
OVERWRITING = {aten.normal_, aten.uniform_, aten.exponential_, aten.zero_, aten.fill_, aten.copy_}
"""Give every number of their first argument a value that does not depend on what it was."""
REBINDING = {aten.set_, aten.resize_}


class NotDeferrableError(Exception):
    """A constructor does what cannot be written down: its model must be built whole."""


@dataclass(frozen=True)
class View:
    """A tensor of a recording: which storage it shows, and how."""

    storage: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> View:
        size, stride = tuple(tensor.shape), tuple(tensor.stride())
        return cls(storage_of(tensor), size, stride, int(tensor.storage_offset()), tensor.dtype)

    def on(self, memory: torch.UntypedStorage) -> Tensor:
        """The tensor, where the storage has this memory."""
        tensor = torch.empty(0, dtype=self.dtype)
        return tensor.set_(memory, self.offset, self.size, self.stride)

    def covers(self, nbytes: int) -> bool:
        """Whether it shows every number of a storage of this many bytes."""
        distinct = all(stride for size, stride in zip(self.size, self.stride, strict=True) if size > 1)
        return distinct and torch.Size(self.size).numel() * self.dtype.itemsize == nbytes


@dataclass(frozen=True)
class Operation:
    """One operation of torch; its arguments have a `View` for each tensor of the recording."""

    function: Any
    args: Any
    kwargs: Any
    results: tuple[View | None, ...]
    """Its new tensors, with None for each that shows an older one."""
    touched: frozenset[int]
    """Storages that it reads or writes."""
    written: frozenset[int]
    overwritten: frozenset[int]
    """Those of the written whose earlier values do not matter to it."""
    is_random: bool


@dataclass
class Recording:
    """What constructors would have done."""

    operations: list[Operation] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    """Bytes of each storage."""

    @torch.no_grad()
    def play(self, wanted: set[int], finish: Callable[[int, torch.UntypedStorage], None]) -> None:
        """Do all of it on the CPU, drawing from torch's generator.

        Args:
            wanted: storages whose final values matter.
            finish: called once for each of them, with its memory, which is freed afterwards.
        """
        needed = self.needed_for(wanted)
        todo = self.by_storage(needed)
        for storage in wanted - todo.keys():
            finish(storage, zeros(self.sizes[storage]))  # nothing gives it a value
        memory: dict[int, torch.UntypedStorage] = {}
        draws = any(self.operations[i].is_random for i in needed)
        for turn, operation in enumerate(self.operations):
            if turn not in needed and draws and operation.is_random:
                self.execute(operation, {})
            # What can follow at once does, before its turn: so tensors are finished early.
            ready = [turn] if turn in needed else []
            while ready:
                i = ready.pop()
                touched = self.operations[i].touched
                if any(todo.get(storage, [None])[-1] != i for storage in touched):
                    continue  # done, or something comes before it
                self.execute(self.operations[i], memory)
                for storage in touched:
                    todo[storage].pop()
                    if not todo[storage]:
                        del todo[storage]
                        if storage in wanted:
                            finish(storage, memory[storage])
                        del memory[storage]
                        continue
                    following = self.operations[todo[storage][-1]]
                    if storage in following.overwritten:
                        del memory[storage]
                    if not following.is_random:
                        ready.append(todo[storage][-1])

    def by_storage(self, needed: set[int]) -> dict[int, list[int]]:
        """The needed operations on each storage, the first one last."""
        found: dict[int, list[int]] = {}
        for i in sorted(needed, reverse=True):
            for storage in self.operations[i].touched:
                found.setdefault(storage, []).append(i)
        return found

    def needed_for(self, wanted: set[int]) -> set[int]:
        """The operations without which a wanted storage would end with other values."""
        needed, values = set(), set(wanted)
        for i in reversed(range(len(self.operations))):
            operation = self.operations[i]
            if operation.written & values:
                needed.add(i)
                values = values - operation.overwritten | (operation.touched - operation.overwritten)
        return needed

    def execute(self, operation: Operation, memory: dict[int, torch.UntypedStorage]) -> None:
        """Do one operation on `memory`, which gets whatever storage is missing in it."""

        def real(view: View) -> Tensor:
            if view.storage not in memory:
                memory[view.storage] = zeros(self.sizes[view.storage])
            return view.on(memory[view.storage])

        args, kwargs = tree_map_only(View, real, (operation.args, operation.kwargs))
        results = tensors_in(operation.function(*args, **kwargs))
        for view, tensor in zip(operation.results, results, strict=True):
            if view is not None:
                memory[view.storage] = tensor.untyped_storage()


class Recorder(TorchDispatchMode):
    """Within it, torch makes floating-point tensors without memory, and writes down what is done to them."""

    def __init__(self) -> None:
        super().__init__()
        self.recording = Recording()
        self.known: dict[int, StorageWeakRef] = {}
        """A weak reference keeps a storage's number from being given to another."""
        self.generator_state = torch.get_rng_state()
        self.disguise = Disguise()

    def __enter__(self) -> Recorder:
        super().__enter__()
        self.disguise.__enter__()
        # It looks at what it has drawn and draws again where that is too far out: one operation to us.
        self.truncated_normal = init._no_grad_trunc_normal_
        init._no_grad_trunc_normal_ = self.record_truncated_normal
        return self

    def __exit__(self, *error: Any) -> None:
        init._no_grad_trunc_normal_ = self.truncated_normal
        self.disguise.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            tensors = tensors_in((args, kwargs))
            deferred = any(tensor.is_meta for tensor in tensors)
            makes = not tensors and func.overloadpacket in FACTORIES and is_floating_point(kwargs)
            if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
                self.check_draw(func, (deferred or makes) and func.overloadpacket in RANDOM)
            if not deferred and not makes:
                return func(*args, **kwargs)
            if func.overloadpacket in REBINDING or kwargs.get("generator") is not None:
                raise NotDeferrableError(f"{func} on a weight")
            if makes:
                kwargs = {**kwargs, "device": torch.device("meta")}
            shapes = tree_map_only(Tensor, lambda t: t if t.is_meta else t.to("meta"), (args, kwargs))
            out = func(*shapes[0], **shapes[1])
            self.record(func, args, kwargs, self.note(tensors_in(out)))
            return out

    def check_draw(self, func: Any, known: bool) -> None:
        """Raise where numbers would be drawn in another order than without a recorder."""
        if not known:
            raise NotDeferrableError(f"{func} draws numbers for something that is no weight")
        if not torch.equal(torch.get_rng_state(), self.generator_state):
            raise NotDeferrableError("it seeds torch's generator")

    def note(self, results: list[Tensor]) -> tuple[View | None, ...]:
        """An operation's results, those that no earlier tensor shares its storage with, as views."""
        views: list[View | None] = []
        for tensor in results:
            is_new = storage_of(tensor) not in self.known
            views.append(View.of(tensor) if is_new else None)
            if is_new:
                self.known[storage_of(tensor)] = StorageWeakRef(tensor.untyped_storage())
                self.recording.sizes[storage_of(tensor)] = tensor.untyped_storage().nbytes()
        return tuple(views)

    def record(self, func: Any, args: Any, kwargs: Any, results: tuple[View | None, ...]) -> None:
        packet = func.overloadpacket
        if packet in UNSET or not (any(results) or func._schema.is_mutable):  # gives no value, or a view
            return
        changed = changed_by(func, args, kwargs)
        if not all(tensor.is_meta for tensor in changed):
            raise NotDeferrableError(f"{func} makes a table from a weight")
        args, kwargs = tree_map_only(Tensor, self.freeze, (args, kwargs))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        self.write_down(func, args, kwargs, results, changed, packet in OVERWRITING, packet in RANDOM)

    def record_truncated_normal(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch._C.DisableTorchFunction():
            generator = kwargs.pop("generator", None)
            self.check_draw(init.trunc_normal_, tensor.is_meta and generator is None)
            self.write_down(
                self.truncated_normal, (self.freeze(tensor), *args), kwargs, (None,), [tensor], True, True
            )
        return tensor

    def write_down(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        results: tuple[View | None, ...],
        changed: list[Tensor],
        overwrites: bool,
        is_random: bool,
    ) -> None:
        """Add an operation to the recording; one that `overwrites` does so to its first argument."""
        given = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, View)]
        created = frozenset(view.storage for view in results if view is not None)
        replaced = set(created)
        if overwrites and given[0].covers(self.recording.sizes[given[0].storage]):
            replaced |= {given[0].storage} - {view.storage for view in given[1:]}
        self.recording.operations.append(
            Operation(
                func,
                args,
                kwargs,
                results=results,
                touched=created | {view.storage for view in given},
                written=created | {storage_of(tensor) for tensor in changed},
                overwritten=frozenset(replaced),
                is_random=is_random,
            )
        )

    def freeze(self, tensor: Tensor) -> View | Tensor:
        """What stands for an argument: a view, or a table's values as they are now."""
        if not tensor.is_meta:
            return tensor.detach().clone()
        if storage_of(tensor) not in self.known:
            raise NotDeferrableError("it makes tensors on the meta device itself")
        return View.of(tensor)

    def living(self) -> set[int]:
        """Storages that something still shows."""
        return {storage for storage, reference in self.known.items() if not reference.expired()}


class Disguise(TorchFunctionMode):
    """Within it, tensors without memory say that they are on the CPU: initialisers leave out what is on meta."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func == IS_META:
            return False
        return torch.device("cpu") if func == DEVICE and answer.type == "meta" else answer


IS_META, DEVICE = Tensor.is_meta.__get__, Tensor.device.__get__  # type: ignore[attr-defined]


def changed_by(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors among the arguments that an operation of torch writes to."""
    named = {argument.name: argument for argument in func._schema.arguments}
    given = {**dict(zip(named, args, strict=False)), **kwargs}
    written = [
        v for n, v in given.items() if named[n].alias_info is not None and named[n].alias_info.is_write
    ]
    return tensors_in(written)


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def zeros(nbytes: int) -> torch.UntypedStorage:
    """Memory of zeros that the system has back as soon as nobody uses it; malloc keeps up to 64 MB for itself."""
    return torch.frombuffer(mmap(-1, max(nbytes, 1)), dtype=torch.uint8).untyped_storage()


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


def is_floating_point(kwargs: dict[str, Any]) -> bool:
    """Whether a factory called with these makes a floating-point tensor."""
    return (kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point
