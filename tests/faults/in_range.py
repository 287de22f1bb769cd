"""Overrides that are right by themselves, made from the schema: settings in their range, text as odd as can be."""

from typing import Any, Literal, get_args, get_origin

from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from train.config.plan import ComposedCfg
from train.config.suggest import list_settings

# What YAML would read as something else, or not at all, were it not written down with care.
TEXT = ["1e3", "0o7", "0777", "1_000", "12:30:45", "2026-01-01", "null", "~", "no", "off", "True", ".inf", "nan"]
TEXT += ["é", "😀", " a ", "a: b", "# x", "- a", "{a: 1}", "[1]", "!x", "&a", "*a", "%", "@", "`", "|", ">", "?"]
TEXT += ["a\tb", "a\nb", "\x1b", "\x7f", "\ufeff", "a\\b", "it's", '"', "=", "<<", "$"]
LISTS = {"files", "packages", "sources", "betas", "objective"}
ELSEWHERE = {"dir"}  # a run folder that is anywhere


def quoted(text: str) -> str:
    """Return text as Hydra's grammar takes it."""
    return "'" + text.replace("'", "\\'") + "'"


text = st.sampled_from(TEXT).map(quoted)


def values(info: FieldInfo) -> st.SearchStrategy[str]:
    """Return values of a setting that are in its range."""
    kinds = [kind for kind in get_args(info.annotation) if kind is not type(None)] or [info.annotation]
    if get_origin(info.annotation) is Literal:
        return st.sampled_from(get_args(info.annotation))
    if kinds[0] is bool:
        return st.sampled_from(["true", "false"])
    bounds = {
        name: getattr(m, name) for m in info.metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name)
    }
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if kinds[0] is int:
        return st.integers(low, high).map(str)
    if kinds[0] is float:
        return st.floats(low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds).map(repr)
    pattern = next((m.pattern for m in info.metadata if getattr(m, "pattern", None)), None)
    return st.from_regex(pattern, fullmatch=True).map(quoted) if pattern else text


def _field(key: str) -> FieldInfo:
    model: Any = ComposedCfg
    *path, name = key.split(".")
    for part in path:
        model = model.model_fields[part].annotation
    found: FieldInfo = model.model_fields[name]
    return found


SINGLE = [key for key in sorted(list_settings(ComposedCfg)) if key.rpartition(".")[2] not in LISTS | ELSEWHERE]
in_range = st.one_of(
    st.sampled_from(SINGLE).flatmap(lambda key: values(_field(key)).map(lambda value: f"{key}={value}")),
    st.lists(text, min_size=1, max_size=3).map(lambda items: f"data.files=[{','.join(items)}]"),
)
