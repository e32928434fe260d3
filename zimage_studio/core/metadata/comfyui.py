"""ComfyUI: the graph that ran (`prompt`, API format), followed from its sampler to texts, size, model and shift.

Only what is certain is taken. Several samplers, a text that another node computes, a picture as the start: each is
listed. The editor's own file (`workflow`) is not followed, because it keeps its values without names.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from zimage_studio.core.metadata.findings import Findings

MAX_HOPS = 50
MAX_NODES = 2000
MAX_ID_CHARS = 100
_SIZES = {"EmptyLatentImage", "EmptySD3LatentImage", "EmptyFlux2LatentImage"}
_SHIFTS = {"ModelSamplingAuraFlow", "ModelSamplingSD3"}
_LOADERS = {"UNETLoader": "unet_name", "UnetLoaderGGUF": "unet_name", "CheckpointLoaderSimple": "ckpt_name"}
_LORAS = {"LoraLoader", "LoraLoaderModelOnly"}
_PASSES_ON = {"Reroute", "Reroute (rgthree)"}
_NO_EFFECT = {"VAEDecode", "SaveImage", "PreviewImage"}
"""Not listed: they hold nothing that decides the picture."""
_VALUE_NODES = {
    "PrimitiveInt": "value",
    "PrimitiveFloat": "value",
    "PrimitiveString": "value",
    "PrimitiveStringMultiline": "value",
    "INTConstant": "value",
    "Seed (rgthree)": "seed",
}


@dataclass(frozen=True, slots=True)
class _Node:
    id: str
    kind: str
    inputs: Mapping[str, object]


def is_graph(data: object) -> bool:
    """Whether this is a graph in API format: nodes by number, each with its class and inputs."""
    return isinstance(data, dict) and any(
        isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in data.values()
    )


def read_graph(data: Mapping[str, object], found: Findings) -> None:
    """Take over what the graph says about the picture."""
    graph = _Graph(data)
    samplers = graph.samplers()
    used: set[str] = set()
    if len(samplers) == 1:
        used = _read_sampling(graph, samplers[0], found)
    else:
        _say_why_not(samplers, found)
    for node in graph.nodes.values():
        if node.id not in used and node.kind not in _NO_EFFECT:
            found.leave(f"{node.id[:MAX_ID_CHARS]} {node.kind}", dict(node.inputs))
    for key, value in data.items():
        if key not in graph.nodes:
            found.leave(key, value)


class _Graph:
    """The nodes, and how to walk from one to the next without ever going in a circle."""

    def __init__(self, data: Mapping[str, object]) -> None:
        self.nodes: dict[str, _Node] = {}
        self._leads_to: dict[str, _Node | None] = {}
        for key, node in list(data.items())[:MAX_NODES]:
            if isinstance(node, dict) and isinstance(node.get("class_type"), str):
                inputs = node.get("inputs")
                self.nodes[key] = _Node(key, node["class_type"], inputs if isinstance(inputs, dict) else {})

    def target(self, value: object) -> _Node | None:
        """The node that a link `[id, slot]` leads to, through nodes that only pass on."""
        first = self._linked(value)
        if first is None or first.kind not in _PASSES_ON:
            return first
        if first.id not in self._leads_to:  # a hostile graph has a hundred thousand links into one long chain
            self._leads_to[first.id] = self._end_of_chain(first)
        return self._leads_to[first.id]

    def _linked(self, value: object) -> _Node | None:
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)):
            return None
        return self.nodes.get(str(value[0])[:MAX_ID_CHARS])

    def _end_of_chain(self, first: _Node) -> _Node | None:
        node: _Node | None = first
        for _ in range(MAX_HOPS):
            if node is None or node.kind not in _PASSES_ON:
                return node
            node = self._linked(next(iter(node.inputs.values()), None))
        return None

    def literal(self, value: object) -> object:
        """A value, or the value in the node it is linked to; None when another kind of node computes it."""
        if not isinstance(value, list):
            return None if isinstance(value, dict) else value
        node = self.target(value)
        if node is None or node.kind not in _VALUE_NODES:
            return None
        held = node.inputs.get(_VALUE_NODES[node.kind])
        return None if isinstance(held, list | dict) else held

    def samplers(self) -> list[_Node]:
        """Samplers that a saved picture depends on; all, when nothing is saved."""
        samplers = [node for node in self.nodes.values() if "KSampler" in node.kind or node.kind in _READERS]
        samplers = [node for node in samplers if node.kind != "KSamplerSelect"]
        reached = self._reached([node for node in self.nodes.values() if node.kind.startswith("Save")])
        return [node for node in samplers if node.id in reached] if reached else samplers

    def _reached(self, start: list[_Node]) -> set[str]:
        seen = {node.id for node in start}
        queue = list(start)
        while queue:
            for value in queue.pop().inputs.values():
                node = self.target(value)
                if node is not None and node.id not in seen:
                    seen.add(node.id)
                    queue.append(node)
        return seen

    def models(self, value: object) -> Iterator[_Node]:
        """The chain of nodes that a model came through, the last change first."""
        for _ in range(MAX_HOPS):
            node = self.target(value)
            if node is None:
                return
            yield node
            value = node.inputs.get("model")


def _say_why_not(samplers: list[_Node], found: Findings) -> None:
    if not samplers:
        found.note("prompt", None, None, "meta.no_sampler")
        return
    names = ", ".join(f"{node.id[:MAX_ID_CHARS]} {node.kind[:MAX_ID_CHARS]}" for node in samplers[:20])
    found.note("sampler", names, None, "meta.samplers", count=len(samplers))


def _plain(_graph: _Graph, node: _Node, _used: set[str]) -> dict[str, object]:
    """The inputs of KSampler and KSamplerAdvanced, under one set of names."""
    values = dict(node.inputs)
    values["seed"] = values.get("seed", values.get("noise_seed"))
    values["start"], values["end"] = values.get("start_at_step"), values.get("end_at_step")
    return values


def _custom(graph: _Graph, node: _Node, used: set[str]) -> dict[str, object]:
    """SamplerCustom and SamplerCustomAdvanced: noise, guider, sampler and times come from nodes of their own."""
    values = dict(node.inputs)
    values["seed"] = values.get("noise_seed")
    for name, kind, taken in (
        ("noise", "RandomNoise", {"seed": "noise_seed"}),
        ("sampler", "KSamplerSelect", {"sampler_name": "sampler_name"}),
        ("sigmas", "BasicScheduler", {"steps": "steps", "scheduler": "scheduler", "denoise": "denoise"}),
        ("guider", "CFGGuider", {"cfg": "cfg", "positive": "positive", "negative": "negative", "model": "model"}),
        ("guider", "BasicGuider", {"positive": "conditioning", "model": "model"}),
    ):
        target = graph.target(node.inputs.get(name))
        if target is not None and target.kind == kind:
            values |= {ours: target.inputs.get(theirs) for ours, theirs in taken.items()}
            used.add(target.id)
            if kind == "BasicGuider":
                values["cfg"] = 1.0
    return values


_READERS = {
    "KSampler": _plain,
    "KSamplerAdvanced": _plain,
    "SamplerCustom": _custom,
    "SamplerCustomAdvanced": _custom,
}


def _read_sampling(graph: _Graph, node: _Node, found: Findings) -> set[str]:
    """Take over one sampler; returns the ids of the nodes that were understood."""
    if node.kind not in _READERS:
        found.note("sampler", f"{node.id} {node.kind}", None, "meta.node_unknown")
        return set()
    used = {node.id}
    values = _READERS[node.kind](graph, node, used)
    _texts(graph, values, found, used)
    _numbers(graph, values, found)
    _size(graph, values, found, used)
    _models(graph, values, found, used)
    _whole_run(graph, values, found)
    found.sampler("sampler_name", graph.literal(values.get("sampler_name")))
    found.scheduler("scheduler", graph.literal(values.get("scheduler")))
    found.note("noise", None, "cpu", "meta.noise_comfyui")
    return used


def _numbers(graph: _Graph, values: Mapping[str, object], found: Findings) -> None:
    for name in ("seed", "steps", "cfg"):
        raw = values.get(name)
        value = graph.literal(raw)
        if value is None:
            if raw is not None:
                found.note(name, raw, None, "meta.linked")
        elif name == "cfg":
            found.cfg_scale("cfg", value)
        else:
            found.take(name, name, value)


def _texts(graph: _Graph, values: Mapping[str, object], found: Findings, used: set[str]) -> None:
    for field, name in (("prompt", "positive"), ("negative_prompt", "negative")):
        node = graph.target(values.get(name))
        if node is None:
            continue
        if node.kind == "ConditioningZeroOut":
            used.add(node.id)
            off = graph.literal(values.get("cfg")) in (1, 1.0)
            found.note(field, node.kind, "" if off else None, "meta.zeroed_off" if off else "meta.zeroed")
        elif node.kind != "CLIPTextEncode":
            found.note(field, f"{node.id} {node.kind}", None, "meta.node_unknown")
        elif (text := graph.literal(node.inputs.get("text"))) is None:
            found.note(field, node.inputs.get("text"), None, "meta.linked")
        else:
            found.text(field, f"{node.id} text", text)
            used.add(node.id)


def _size(graph: _Graph, values: Mapping[str, object], found: Findings, used: set[str]) -> None:
    node = graph.target(values.get("latent_image"))
    if node is None:
        return
    if node.kind not in _SIZES:
        found.note("size", f"{node.id} {node.kind}", None, "meta.second_pass")
        return
    used.add(node.id)
    width, height = (graph.literal(node.inputs.get(side)) for side in ("width", "height"))
    found.size(f"{node.id} {node.kind}", width, height)
    if graph.literal(node.inputs.get("batch_size")) not in (None, 1):
        found.note("count", node.inputs.get("batch_size"), None, "meta.batch")


def _models(graph: _Graph, values: Mapping[str, object], found: Findings, used: set[str]) -> None:
    for node in graph.models(values.get("model")):
        if node.kind in _SHIFTS and "shift" not in found.recipe:
            shift = graph.literal(node.inputs.get("shift"))
            if shift is None or found.take("shift", f"{node.id} shift", shift):
                used.add(node.id)
        elif node.kind in _LOADERS:
            found.model(graph.literal(node.inputs.get(_LOADERS[node.kind])))
            used.add(node.id)
        elif node.kind in _LORAS:
            found.note("model", graph.literal(node.inputs.get("lora_name")), None, "meta.lora")
        else:
            found.note("model", f"{node.id} {node.kind}", None, "meta.node_unknown")


def _whole_run(graph: _Graph, values: Mapping[str, object], found: Findings) -> None:
    """Whether all of the steps were run, from pure noise."""
    denoise, start, end, steps = (graph.literal(values.get(name)) for name in ("denoise", "start", "end", "steps"))
    if denoise not in (None, 1, 1.0):
        found.note("denoise", denoise, None, "meta.second_pass")
    ends_early = isinstance(end, int) and isinstance(steps, int) and end < steps
    if start not in (None, 0) or ends_early:
        found.note("steps", f"{start}-{end}", None, "meta.part_of_steps")
    if graph.literal(values.get("add_noise")) in ("disable", False):
        found.note("noise", "add_noise", None, "meta.second_pass")
