"""Make Hydra's structured config from the pydantic schema."""

from dataclasses import field, make_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Optional, Union, get_args, get_origin

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from train.config.describe import format_groups, format_settings
from train.config.plan import ComposedCfg, SftCfg
from train.config.schema import LoggerName
from train.config.suggest import name_train_command


def register() -> None:
    """Store the schema as Hydra's config `schema`, and register the resolvers of its help."""
    ConfigStore.instance().store(name="schema", node=make_node(ComposedCfg))
    OmegaConf.register_new_resolver("bpe_entries", _choose_V, replace=True)
    OmegaConf.register_new_resolver("train_command", name_train_command, replace=True)
    OmegaConf.register_new_resolver("groups_help", format_groups, replace=True)
    OmegaConf.register_new_resolver("settings_help", format_settings, replace=True)


def _choose_V(entries: int, *, _root_: DictConfig) -> int | None:
    """Return the V of a preset: so many entries for a BPE that is trained, else null, as the tokenizer has."""
    return entries if _root_.data.tokenizer == "bpe" else None


@cache  # OmegaConf merges two nodes only if they are of one class
def make_node(model: type[BaseModel], follow: str | None = None) -> Any:
    """Return a dataclass with the fields of `model`; with `follow`, each defaults to the field at that path."""
    fields = [
        (name, kind, field(**default))
        for name, info in model.model_fields.items()
        for kind, default in [_translate_field(name, info, follow)]
    ]
    return make_dataclass(f"{model.__name__}Node", fields)


def _translate_field(name: str, info: FieldInfo, follow: str | None) -> tuple[Any, dict[str, Any]]:
    """Return a field's type in OmegaConf's terms, and its default as keywords of dataclasses.field."""
    if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
        within = f"{follow}{name}." if follow is not None else None
        node = make_node(info.annotation, "" if info.annotation is SftCfg else within)
        return node, {"default_factory": node}
    kind = _translate_type(info.annotation)
    if follow is not None:
        return kind, {"default": f"${{{follow}{name}}}"}
    if isinstance(info.default, tuple):
        return kind, {"default_factory": lambda: list(info.default)}
    return kind, {"default": MISSING if info.is_required() else info.default}


def _translate_type(annotation: Any) -> Any:
    """Translate types that OmegaConf does not know: Literal to its base type, tuple to list, models to nodes."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return type(arguments[0])
    if annotation in (tuple[str, ...], tuple[LoggerName, ...]):
        return Any  # OmegaConf has no type for a list that may be written as a single text
    if origin is tuple:
        return list[_translate_type(arguments[0])]  # type: ignore[misc]
    if origin in (Union, UnionType):
        return Optional[_translate_type(arguments[0])]  # noqa: UP045  OmegaConf reads this form
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return make_node(annotation)
    return annotation
