"""diffusers' hooks, put on and taken off again without a trace."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn


def add_hook(module: nn.Module, hook: ModelHook, name: str, undo: ExitStack) -> None:
    """Put `hook` around `module`'s forward; `undo` takes it off."""
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)
    undo.callback(drop_hook, module, name)


def find_hook(module: nn.Module, name: str) -> Any:
    """The live hook `name` of `module` itself, or None."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(name)


def drop_hook(module: nn.Module, name: str) -> None:
    """Take the hook off; with the last one goes the registry, and `forward` is the class's own again."""
    if find_hook(module, name) is None:
        return
    registry: Any = module._diffusers_hook
    registry.remove_hook(name, recurse=False)
    if registry.hooks:
        return
    del module._diffusers_hook
    tidy_forward(module)


def tidy_forward(module: nn.Module) -> None:
    """Libraries that wrapped `forward` put the original back as an attribute of the module; the class has it."""
    forward = module.__dict__.get("forward")
    if getattr(forward, "__func__", None) is type(module).forward:
        del module.__dict__["forward"]


def drop_all(root: nn.Module, names: Iterable[str]) -> None:
    """Take the hooks `names` off every module in `root`."""
    for module in list(root.modules()):
        for name in names:
            drop_hook(module, name)


def each_hook(root: nn.Module, name: str) -> list[Any]:
    """All live hooks `name` in `root`."""
    return [hook for module in root.modules() if (hook := find_hook(module, name)) is not None]


def set_with_undo(target: object, name: str, value: object, undo: ExitStack) -> None:
    """Set an attribute; `undo` gives back the value it had."""
    undo.callback(_setter(target, name, getattr(target, name)))
    setattr(target, name, value)


def _setter(target: object, name: str, value: object) -> Callable[[], None]:
    def put_back() -> None:
        setattr(target, name, value)

    return put_back
