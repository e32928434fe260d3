"""Switches of the transformer's blocks: feed-forward chunks, gradient checkpointing, regional compilation."""

import importlib.util
import os
import shutil
from contextlib import ExitStack

from zimage_studio.core.memory.feed_forward import HOOK, chunk_feed_forward
from zimage_studio.core.memory.hooks import find_hook, set_with_undo
from zimage_studio.core.memory.site import OFF, Answer, Site, applied, blocks, feed_forwards, idle

COMPILERS = ("g++", "clang++", "c++", "cl")
RECOMPILE_LIMIT = 64
"""Z-Image needs about 11 graphs a size (refiners, with and without mask); dynamo gives up at 8."""


def put_chunks(site: Site, undo: ExitStack) -> None:
    """Feed-forward layers in pieces."""
    if site.profile.feed_forward_chunks > 1:
        chunk_feed_forward(site.pipeline.transformer, site.profile.feed_forward_chunks, undo)


def look_chunks(site: Site) -> Answer:
    """Read from the live hooks."""
    hooks = [find_hook(layer, HOOK) for layer in feed_forwards(site.pipeline.transformer)]
    found = [hook.chunks for hook in hooks if hook is not None]
    return applied("memory.chunks.is", value=max(found), count=len(found)) if found else OFF


def put_checkpointing(site: Site, undo: ExitStack) -> None:
    """diffusers' own switch, which acts where gradients are."""
    if site.profile.gradient_checkpointing:
        set_with_undo(site.pipeline.transformer, "gradient_checkpointing", True, undo)


def look_checkpointing(site: Site) -> Answer:
    """On or off, generation runs without gradients."""
    return idle("memory.checkpointing.no_gradients") if site.pipeline.transformer.gradient_checkpointing else OFF


def put_compile(site: Site, undo: ExitStack) -> None:
    """Compile each kind of block once, at its first use."""
    if not site.profile.compile:
        return
    if site.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        site.refuse("compile", "memory.compile.no_triton")
        return
    if site.device.type == "cpu" and not compiler():
        site.refuse("compile", "memory.compile.no_compiler")
        return
    for block in blocks(site.pipeline.transformer):
        set_with_undo(block, "_compiled_call_impl", block._compiled_call_impl, undo)
    site.pipeline.transformer.compile_repeated_blocks(fullgraph=True, recompile_limit=RECOMPILE_LIMIT)


def compiler() -> str | None:
    """The C++ compiler that torch would find, or None."""
    wanted = (os.environ["CXX"],) if os.environ.get("CXX") else COMPILERS
    return next((path for name in wanted if (path := shutil.which(name))), None)


def look_compile(site: Site) -> Answer:
    """How many blocks are compiled, or will be at their first call."""
    count = sum(block._compiled_call_impl is not None for block in blocks(site.pipeline.transformer))
    return applied("memory.compile.is", value=count) if count else OFF
