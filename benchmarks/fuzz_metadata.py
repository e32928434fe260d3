"""A coverage-guided fuzzer (atheris, on libFuzzer) over the reader of metadata. Not part of the tests.

    pip install atheris==3.0.0      # wheels for Linux; nothing else needs it, so no requirements file names it
    nice -n 19 python -m benchmarks.fuzz_metadata --corpus DIR --seconds 600
    python -m benchmarks.fuzz_metadata --corpus DIR --lines     # which lines the cases in DIR reach

The first byte of a case chooses the door (a file as it stands, a pasted text, a text in one of the containers under one
of the keys), the rest is what comes in. Anything but an answer that holds `tests/core/sound_answers.py` or a UserError
is a finding, and so is a case of more than a second: libFuzzer stops and leaves the case in DIR as `crash-…`.
"""

import argparse
import copy
import json
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from types import CodeType, FrameType

PACKAGE = Path(__file__).parent.parent / "zimage_studio" / "core" / "metadata"
MAX_CASE_BYTES = 20_000
MAX_SECONDS = 1.0
KEYS = ("parameters", "prompt", "invokeai_metadata", "zimage_studio", "workflow", "comment")
WORDS = (
    "Steps: 8, Seed: 1, Size: 512x512", "Negative prompt:", "CFG scale: ", "Sampler: Euler", "RNG: CPU", "App: SD.Next",
    "Pipeline: ZImagePipeline", "Raw prompt: ", "<lora:a:1>", "sui_image_params", "sigmashift", "class_type", "inputs",
    "KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced", "CFGGuider", "BasicGuider", "RandomNoise",
    "BasicScheduler", "KSamplerSelect", "CLIPTextEncode", "ConditioningZeroOut", "EmptySD3LatentImage", "LoraLoader",
    "ModelSamplingAuraFlow", "UNETLoader", "Reroute", "PrimitiveInt", "SaveImage", "latent_image", "noise_seed",
    "generation_mode", "z_image_txt2img", "z_image_shift", "positive_prompt", "rand_device", "base_model", "resolution",
    "performance", "guidance_scale", "numerics", "outcome", "sigmas", "variations", "source", "NaN", "1e999", "\\ud800",
    "IHDR", "tEXt", "zTXt", "iTXt", "eXIf", "IEND", "EXIF", "WEBP", "UNICODE", "ASCII", "JIS", "…",
)  # fmt: skip


def containers() -> list[Callable[[bytes], bytes]]:
    """What makes a file of the bytes of a case."""
    from tests.core.foreign_samples import chunk, exif, user_comment
    from zimage_studio.core.metadata.png import SIGNATURE

    def png(kind: bytes, head: bytes, body: bytes) -> bytes:
        return SIGNATURE + chunk(kind, head + body) + chunk(b"IEND", b"")

    def webp(block: bytes) -> bytes:
        return b"RIFF\0\0\0\0WEBPEXIF" + len(block).to_bytes(4, "little") + block + b"\0" * (len(block) % 2)

    def two_keys(body: bytes) -> bytes:
        first, _, second = body.partition(b"\x1e")
        return png(b"tEXt", b"fooocus_scheme\0", first)[:-12] + chunk(b"iTXt", b"parameters" + bytes(5) + second)

    return [
        bytes,
        *(lambda body, key=key: png(b"iTXt", key.encode() + bytes(5), body) for key in KEYS),
        lambda body: png(b"zTXt", b"parameters\0\0", zlib.compress(body, 1)),
        lambda body: png(b"eXIf", b"", body),
        lambda body: webp(body),
        lambda body: webp(exif({}, inner={0x9286: body + bytes(5)}, order="<")),
        lambda body: webp(exif({0x0110: b"prompt:" + body})),
        lambda body: webp(exif({}, inner={0x9286: user_comment(body.decode("utf-8", "replace"))})),
        lambda body: webp(exif({0x927C: b"fooocus\0", 0x9286: body + bytes(5)})),
        two_keys,
    ]


def make_reader(folder: Path) -> Callable[[bytes], None]:
    """What a fuzzer calls: reads one case, raises what is a finding."""
    from tests.core.sound_answers import assert_sound
    from zimage_studio.core.metadata.inspect import inspect_file, inspect_text
    from zimage_studio.core.metadata.png import read_own_recipe
    from zimage_studio.errors import UserError

    doors, path = containers(), folder / "case.bin"

    def read(case: bytes) -> None:
        door, body = (case[0] if case else 0) % (len(doors) + 1), case[1:]
        began = time.process_time()
        try:
            if door == len(doors):
                assert_sound(inspect_text(body.decode("utf-8", "surrogateescape")))
            else:
                path.write_bytes(doors[door](body))
                assert_sound(inspect_file(path))
                read_own_recipe(path)
        except UserError as error:
            error.text("zh")
        if time.process_time() - began > MAX_SECONDS:
            raise RuntimeError(f"{time.process_time() - began:.1f} s for {len(case)} bytes")

    return read


def write_seeds(corpus: Path) -> None:
    """Real samples of every dialect, through every door, and the files of every container."""
    from tests.core import foreign_samples as samples
    from tests.core.foreign_samples import exif, jpeg, png, user_comment, webp
    from tests.core.worst_files import a_recipe

    texts = [samples.A1111, samples.SDNEXT, samples.SWARM, samples.INVOKE, samples.FOOOCUS, samples.FOOOCUS_A1111]
    texts += [*_graphs(), a_recipe().to_json(), '{"nodes": [], "links": []}']
    texts += [f"a1111\x1e{samples.FOOOCUS_A1111}", f"fooocus\x1e{samples.FOOOCUS}"]
    texts += [f"{samples.A1111}, diffusers: 0.36.0, Variation seed: {seed}" for seed in (7, "x")]
    texts += [f"{texts[-2]}, Variation seed strength: 0.5, Variety: 0.5, Version: Z-Image Studio 1"]
    block = exif({0x0131: b"software"}, inner={0x9286: user_comment(samples.A1111)})
    camera = exif({0x927C: b"Canon\1"}, inner={0x9286: user_comment(samples.A1111, "utf-16")})
    files = [png(parameters=texts[0]), jpeg(block, b"comment"), webp(block), block, webp(camera), jpeg(camera)]
    bodies = [text.encode() for text in texts] + files
    for door in range(len(containers()) + 1):
        for number, body in enumerate(bodies):
            (corpus / f"seed-{door}-{number}").write_bytes(bytes([door]) + body)


def _graphs() -> Iterator[str]:
    """Both samples, and the nodes they lack."""
    from tests.core import foreign_samples as samples

    plain, custom = samples.ksampler_graph(), samples.custom_graph()
    yield json.dumps(plain)
    yield json.dumps(custom)
    yield json.dumps({"prompt": plain, "client_id": "x"})
    part = {"add_noise": "disable", "noise_seed": 5, "start_at_step": 2, "end_at_step": 4}
    plain["44"] = {"class_type": "KSamplerAdvanced", "inputs": plain["44"]["inputs"] | part}
    plain["47"]["inputs"]["model"] = ["48", 0]
    plain["48"] = {"class_type": "LoraLoader", "inputs": {"lora_name": "x", "model": ["46", 0]}}
    yield json.dumps(plain)
    custom["5"] = {"class_type": "BasicGuider", "inputs": {"model": ["2", 0], "conditioning": ["3", 0]}}
    yield json.dumps(custom)
    custom["12"]["class_type"] = "KSampler (Efficient)"
    yield json.dumps(custom)


def mutate_json(case: bytes, seed: int) -> bytes | None:
    """`case` with one value of its JSON moved, doubled or replaced; None when it holds no JSON."""
    chance = random.Random(seed)
    try:
        data = json.loads(case[1:])
    except (ValueError, RecursionError):
        return None
    places = [(parent, key) for parent in _containers(data) for key in _keys(parent)]
    if not places:
        return None
    (parent, key), (other, other_key) = chance.choice(places), chance.choice(places)
    values = [None, True, -1, 2**64, 10**400, 0.5, 1e300, "", "8.0", "…", "\ud800", [], {}, ["1", 0], [[]]]
    value = copy.deepcopy(chance.choice([*values, other[other_key]]))
    if isinstance(parent, dict) and chance.random() < 0.3:
        parent[chance.choice([*WORDS, other_key if isinstance(other_key, str) else "a"])] = parent.pop(key)
    else:
        parent[key] = value
    return case[:1] + json.dumps(data, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")


def _keys(parent: dict | list) -> list:
    return list(parent) if isinstance(parent, dict) else list(range(len(parent)))


def _containers(data: object) -> Iterator[dict | list]:
    queue = [data]
    while queue:
        if isinstance(parent := queue.pop(), dict | list):
            yield parent
            queue += parent.values() if isinstance(parent, dict) else parent


def fuzz(corpus: Path, seconds: int) -> None:
    """Run for `seconds`, or until the first finding. Ends the process."""
    import atheris

    with atheris.instrument_imports(include=["zimage_studio.core.metadata", "zimage_studio.records", "json"]):
        read = make_reader(Path(mkdtemp()))
    write_seeds(corpus)
    words = corpus.parent / "words.txt"
    escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in WORDS)
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    options = {"max_total_time": seconds, "max_len": MAX_CASE_BYTES, "timeout": 20, "dict": words}
    flags = [f"-{name}={value}" for name, value in options.items()]

    def mutate(case: bytes, max_size: int, seed: int) -> bytes:
        """Bytes as libFuzzer changes them, or every other time values, where the case is JSON."""
        changed = mutate_json(case, seed) if seed % 2 else None
        return atheris.Mutate(case, max_size) if changed is None else changed[:max_size]

    flags.append(f"-artifact_prefix={corpus}/")
    atheris.Setup([sys.argv[0], *flags, str(corpus)], read, custom_mutator=mutate)
    atheris.Fuzz()


def reached_lines(corpus: Path) -> dict[str, tuple[int, int]]:
    """Lines of each module that some case in `corpus` runs, of those that can run."""
    reached: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _argument: object) -> Callable | None:
        if not frame.f_code.co_filename.startswith(str(PACKAGE)):
            return None
        if event == "line":
            reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        read = make_reader(Path(mkdtemp()))
        for case in sorted(corpus.iterdir()):
            read(case.read_bytes())
    finally:
        sys.settrace(None)
    counted = {}
    for path in sorted(PACKAGE.glob("*.py")):
        lines = _lines(compile(path.read_text(encoding="utf-8"), str(path), "exec"))
        counted[path.name] = (len({line for file, line in reached if file == str(path)} & lines), len(lines))
    return counted


def _lines(code: CodeType) -> set[int]:
    lines = {line for _, _, line in code.co_lines() if line}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            lines |= _lines(constant) - {constant.co_firstlineno}
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="where cases are kept; continued when not empty")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--lines", action="store_true", help="do not fuzz: count the lines that the corpus reaches")
    arguments = parser.parse_args()
    arguments.corpus.mkdir(parents=True, exist_ok=True)
    if arguments.lines:
        counted = reached_lines(arguments.corpus)
        for name, (reached, lines) in counted.items():
            print(f"{name}: {reached} of {lines}")
        print(f"all: {sum(r for r, _ in counted.values())} of {sum(n for _, n in counted.values())}")
    else:
        fuzz(arguments.corpus, arguments.seconds)


if __name__ == "__main__":
    main()
