"""Random recipes for property tests."""

from hypothesis import strategies as st

from zimage_studio.records.recipe import ModelIdentity, Numerics, Outcome, Recipe
from zimage_studio.records.request import MAX_SEED, GenerationRequest, Variation

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0<"), max_size=200)
HASH = st.text("0123456789abcdef", min_size=64, max_size=64)

VARIATIONS = st.builds(Variation, seed=st.integers(0, MAX_SEED), strength=st.floats(0, 1))


def recipes() -> st.SearchStrategy[Recipe]:
    """Any recipe that can come out of a job."""
    return st.builds(
        Recipe,
        request=st.builds(
            GenerationRequest,
            prompt=TEXT.filter(str.strip),
            negative_prompt=TEXT,
            seed=st.integers(0, MAX_SEED),
            width=st.sampled_from([64, 128, 512]),
            height=st.sampled_from([64, 128, 512]),
            steps=st.integers(1, 200),
            guidance=st.floats(0, 20),
            shift=st.none() | st.floats(0.1, 20),
            variations=st.lists(VARIATIONS, max_size=3).map(tuple),
            variety=st.floats(0, 1),
        ),
        model=st.builds(ModelIdentity, key=TEXT, name=TEXT, sha256=HASH, parent=st.none() | HASH),
        numerics=st.builds(
            Numerics,
            device=TEXT,
            dtypes=st.dictionaries(st.sampled_from(["transformer", "vae"]), st.sampled_from(["float32", "bfloat16"])),
            attention_backend=TEXT,
            memory=st.just({}),
            scheduler=st.dictionaries(st.sampled_from(["class", "shift"]), st.floats(0, 10) | TEXT),
            sigmas=st.lists(st.floats(0, 1), max_size=9).map(tuple),
            sequence_length=st.sampled_from([64, 512]),
        ),
        stack=st.dictionaries(st.sampled_from(["torch", "studio"]), TEXT),
        outcome=st.builds(Outcome, pixels_sha256=HASH, latents_sha256=HASH, seconds=st.floats(0, 1e4)),
        created=TEXT,
        job=TEXT,
        index=st.integers(0, 63),
        parent=st.none() | HASH,
    )
