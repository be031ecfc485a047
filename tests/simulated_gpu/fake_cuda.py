"""CUDA devices without a GPU: fake tensors on them have shapes and no memory, and mixed devices raise an error.

`guard.load_guard` has to be called before torch is imported. `install()` then replaces what a build of torch for CPUs
lacks.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

BLOCK = 512  # bytes that the allocator of CUDA rounds up to
GIB = 2**30


def install(num_devices: int) -> None:
    """Let torch hold fake CUDA tensors: streams and events that do nothing, and attention as a GPU chooses it."""
    cuda: Any = torch.cuda
    stream = _Stream()
    cuda.Stream, cuda.Event = _Stream, _Event
    cuda.current_stream = cuda.default_stream = lambda *_, **__: stream
    cuda.stream = lambda *_, **__: contextlib.nullcontext()
    cuda.device_count = lambda: num_devices
    cuda.current_device = lambda: 0
    cuda.is_available = cuda.is_initialized = lambda: True
    cuda.get_device_capability = lambda *_: (9, 0)
    cuda.is_bf16_supported = lambda *_, **__: True
    for name in ("set_device", "synchronize", "empty_cache", "manual_seed_all"):
        setattr(cuda, name, lambda *_, **__: None)
    torch.nn.functional.scaled_dot_product_attention = _attention_of_a_gpu
    torch.nn.Module._apply = _apply


class _Event:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def wait(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class _Stream:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def synchronize(self) -> None:
        pass


def _attention_of_a_gpu(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Return attention by the kernel that torch chooses on a GPU: flash without a mask, memory-efficient with one."""
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
    if query.dtype != torch.float32 and attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    bias = None
    if attn_mask is not None:
        bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), float("-inf"))
        if rest := -bias.shape[-1] % 16:  # the kernel reads aligned rows
            bias = torch.nn.functional.pad(bias, (0, rest))[..., :-rest]
        bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, query.requires_grad, dropout_p, is_causal, scale=scale
    )[0]


def _apply(self: Any, fn: Any, recurse: bool = True, made: dict[int, Any] | None = None) -> Any:
    """`nn.Module._apply` without swapping tensors in place, which fake tensors with weak references refuse.

    Args:
        made: New parameters by the identity of the old ones, so that tied weights stay tied.
    """
    made = {} if made is None else made
    for module in self.children() if recurse else ():
        _apply(module, fn, recurse, made)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            if id(parameter) not in made:
                with torch.no_grad():
                    new = fn(parameter)
                made[id(parameter)] = torch.nn.Parameter(new, parameter.requires_grad), parameter
            self._parameters[name] = made[id(parameter)][0]
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors of a device that are alive, and the most there ever were, by phase."""

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self.device, self.phase = device, "build"
        self.total = 0
        self.peaks: Counter[str] = Counter()  # most bytes that were alive in each phase
        self._sizes: dict[int, int] = {}
        self._resize: Any = torch.UntypedStorage.resize_

    @property
    def peak_gib(self) -> float:
        """The peak over all phases since `restart`, in GiB."""
        return max(self.peaks.values(), default=0) / GIB

    def restart(self) -> None:
        """Forget the peaks."""
        self.peaks.clear()
        self.peaks[self.phase] = self.total

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self._track, out)
        return out

    def _track(self, tensor: torch.Tensor) -> None:
        if isinstance(tensor, DTensor):
            tensor = tensor._local_tensor
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._free, key).atexit = False
            self._set(key, storage.nbytes())

    def _set(self, key: int, num_bytes: int) -> None:
        rounded = -(-num_bytes // BLOCK) * BLOCK
        self.total += rounded - self._sizes[key]
        self._sizes[key] = rounded
        self.peaks[self.phase] = max(self.peaks[self.phase], self.total)

    def _free(self, key: int) -> None:
        self.total -= self._sizes.pop(key, 0)

    @contextlib.contextmanager
    def counting(self) -> Iterator["LiveBytes"]:
        """Count, and follow storages that FSDP2 frees and allocates again by `resize_`."""

        def resize(storage: Any, num_bytes: int, *rest: Any) -> Any:
            result = self._resize(storage, num_bytes, *rest)
            if storage._cdata in self._sizes:
                self._set(storage._cdata, num_bytes)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
        try:
            with self:
                yield self
        finally:
            torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
