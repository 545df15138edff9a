"""JSON with comments: what is read, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.config.json_comments import read_json, strip_comments
from fed_a2v.errors import ConfigError
from tests.refusals import refused

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
# What may stand between two tokens.
gaps = st.lists(
    st.sampled_from([" ", "\n", "\t", '// a "quote" and /* half\n', '/* , ] } " */', "/**/", "//\n", "/*\n//\n*/"]),
    max_size=3,
).map("".join)


def written(value, draw):
    """JSON of `value` with comments between the tokens, and here and there a comma before a closing bracket."""
    gap = lambda: draw(gaps)  # noqa: E731
    comma = lambda: draw(st.sampled_from(["", ","])) if value else ""  # noqa: E731
    if isinstance(value, dict):
        items = [f"{gap()}{json.dumps(key)}{gap()}:{written(item, draw)}" for key, item in value.items()]
        return f"{gap()}{{{','.join(items)}{gap()}{comma()}{gap()}}}{gap()}"
    if isinstance(value, list):
        return f"{gap()}[{','.join(written(item, draw) for item in value)}{comma()}{gap()}]{gap()}"
    return f"{gap()}{json.dumps(value, ensure_ascii=draw(st.booleans()))}{gap()}"


@given(values, st.data())
def test_comments_and_last_commas_change_nothing(value, data):
    assert json.loads(strip_comments(written(value, data.draw))) == value


@given(values)
def test_json_without_comments_stays_as_it_is(value):
    text = json.dumps(value, indent=1)
    assert strip_comments(text) == text


@pytest.mark.parametrize(
    "text",
    ['"http://x/*y*/"', '"a\\"//b"', '"\\\\"', '[",]", ",}"]', '"/*"', '"\\u0022//"'],
)
def test_what_looks_like_a_comment_inside_a_string_is_text(text):
    assert strip_comments(text) == text


@given(st.text('{}[],:"/*\\ \n1a', max_size=30))
def test_any_text_is_parsed_or_refused_with_a_config_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(text)
    try:
        assert isinstance(read_json(path), dict)
    except ConfigError as error:
        assert str(path) in str(error)


def test_a_missing_file_and_one_that_is_no_text_are_refused(tmp_path):
    with refused(ConfigError, tmp_path / "none.json", "--config=FILE"):
        read_json(tmp_path / "none.json")
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with refused(ConfigError, tmp_path / "x.json", "UTF-8"):
        read_json(tmp_path / "x.json")
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "bom.json") == {}
