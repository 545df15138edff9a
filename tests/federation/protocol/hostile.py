"""Ways to break a valid message, one place at a time or at random.

Each edit takes arrays and the manifest as a tree, and returns both; the manifest may come back as text.
"""

import json

import numpy as np
from hypothesis import strategies as st
from pydantic import ValidationError


def change(*path, to):
    """A hostile edit of the manifest at `path`."""

    def edit(arrays, manifest):
        target = manifest
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = to
        return arrays, manifest

    return edit


def drop(*path):
    def edit(arrays, manifest):
        target = manifest
        for key in path[:-1]:
            target = target[key]
        del target[path[-1]]
        return arrays, manifest

    return edit


def text(function):
    return lambda arrays, manifest: (arrays, function(json.dumps(manifest)))


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([0, 1, 2, 3, -1, 10**30, 1e30, "dog", "rain", "../../x", "train", "register", "x" * 10_000])
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
BROKEN_ARRAYS = st.sampled_from(
    [
        lambda a: a * np.nan if a.dtype.kind == "f" else a * 0,
        lambda a: a.astype(np.float64) + 1e30 if a.dtype.kind == "f" else a + 2**62,
        lambda a: a * -1,
        lambda a: a * 3,
        lambda a: a[None],
        lambda a: a.ravel()[:1],
        lambda a: a.ravel()[:0],
        lambda a: a.T,
        lambda a: a.astype(np.float64),
        lambda a: a.astype(np.float16),
        lambda a: a.astype(np.int64),
        lambda a: a.astype(bool),
        lambda a: a.astype("S8"),
        lambda a: a.astype(object),
        lambda a: np.array(["x"]),
        lambda a: np.broadcast_to(a, (100_000, *a.shape)),
        lambda a: None,
        lambda a: b"bytes",
    ]
)


def places(tree, path=()):
    """Every path in a JSON tree."""
    if path:
        yield path
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], (*path, key))


def mutate(data, arrays, manifest):
    """A few random changes of a valid reply; the manifest comes back as text."""
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["replace", "delete", "array", "drop array", "swap arrays"]))
        if kind in ("replace", "delete") and (paths := list(places(manifest))):
            path = data.draw(st.sampled_from(paths))
            (change(*path, to=data.draw(JUNK)) if kind == "replace" else drop(*path))(arrays, manifest)
        elif kind == "array" and arrays:
            index = data.draw(st.integers(0, len(arrays) - 1))
            array = arrays[index]
            # What was broadcast twice takes no memory, but its product with anything does.
            if isinstance(array, np.ndarray) and array.dtype.kind in "fi" and array.size < 10**8:
                arrays[index] = data.draw(BROKEN_ARRAYS)(array)
        elif kind == "drop array" and arrays:
            del arrays[data.draw(st.integers(0, len(arrays) - 1))]
        elif kind == "swap arrays" and len(arrays) > 1:
            i, j = data.draw(st.integers(0, len(arrays) - 1)), data.draw(st.integers(0, len(arrays) - 1))
            arrays[i], arrays[j] = arrays[j], arrays[i]
    written = json.dumps(manifest)
    if data.draw(st.integers(0, 9)) == 0:
        cut = data.draw(st.integers(0, len(written)))
        written = written[:cut] + data.draw(st.text(max_size=5)) + written[cut:]
    return arrays, written


def manifest_fault(error):
    """The name that pydantic has for what is wrong with a manifest, in a list; empty where another check refused it."""
    cause = error.__cause__
    return [cause.errors()[0]["type"]] if isinstance(cause, ValidationError) else []


def assert_presentable(error):
    """The reason is one short line, and a check gave it, not the handler of unforeseen errors."""
    assert len(str(error)) <= 200
    assert str(error).isprintable()
    assert not str(error).startswith("unreadable")
