"""A card without a card: tensors have no values there, but every operation asks for one device and fitting shapes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode


class _Copies(TorchFunctionMode):
    """What torch's own functions of moving would ask of a driver, as the operations underneath."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.pin_memory:
            return args[0]
        if function is torch.Tensor.copy_:
            return torch.ops.aten.copy_(*args)
        if function is torch.Tensor.cpu:
            return torch.ops.aten._to_copy(args[0], device=torch.device("cpu"))
        if function is torch.Tensor.to:
            wanted: dict[str, Any] = {}
            for value in (*args[1:], kwargs.get("device"), kwargs.get("dtype")):
                if isinstance(value, torch.dtype):
                    wanted["dtype"] = value
                elif isinstance(value, str | torch.device):
                    wanted["device"] = torch.device(value)
            return torch.ops.aten._to_copy(args[0], **wanted)
        if function is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor):
            return torch.ops.aten.index.Tensor(args[0], [args[1]])
        if function is torch.Tensor.__getitem__ and isinstance(args[1], slice):
            return torch.ops.aten.slice.Tensor(args[0], 0, args[1].start, args[1].stop)
        if function is torch.Tensor.__getitem__ and isinstance(args[1], int):
            return torch.ops.aten.select.int(args[0], 0, args[1])
        return function(*args, **kwargs)


class _Event:
    def record(self, stream: object) -> None: ...


@contextmanager
def pretended_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Tensors without values: every operation still asks for one device, one type and fitting shapes, as on a card."""
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    with FakeTensorMode(allow_non_fake_inputs=True), _Copies():
        yield torch.device("cuda:0")
