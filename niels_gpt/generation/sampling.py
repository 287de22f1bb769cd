"""Settings of sampling. This file does not import torch, so that commands can show them in their help."""

from typing import Any

from pydantic import Field, ValidationError, field_validator

from niels_gpt.config import Cfg, Texts
from niels_gpt.errors import ConfigError
from niels_gpt.untrusted import explain_first_error

LONGEST_STOP = 256  # characters


class Sampling(Cfg):
    """Settings of an answer, in the order in which they act on the logits, as in transformers."""

    max_tokens: int = Field(200, ge=1, le=1 << 20, description="longest answer, in tokens")
    ignore_eos: bool = Field(False, description="go on to max_tokens: never choose a token that ends the answer")
    repetition_penalty: float = Field(
        1.0, ge=0.01, le=100.0, description="above 1, tokens that are in the context become less likely"
    )
    temperature: float = Field(
        0.7, ge=0.0, le=1e6, description="0 takes the likeliest token, 1 samples as trained"
    )
    top_k: int = Field(50, ge=0, le=1 << 24, description="sample from the K likeliest tokens; 0: from all")
    top_p: float = Field(
        1.0, gt=0.0, le=1.0, description="sample from the fewest tokens that have probability P together"
    )
    min_p: float = Field(
        0.0, ge=0.0, le=1.0, description="sample from tokens at least P times as likely as the likeliest"
    )
    stop: Texts = Field((), max_length=16, description="end the answer before this text")
    seed: int = Field(0, ge=0, lt=1 << 64, description="random seed: equal seeds give equal answers")
    alternatives: int = Field(0, ge=0, le=20, description="report so many likely tokens beside each chosen one")

    @field_validator("stop")
    @classmethod
    def _limit_length(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if any(not 1 <= len(text) <= LONGEST_STOP for text in stop):
            raise ValueError(f"must have 1 to {LONGEST_STOP} characters")
        return stop


def make_sampling(**settings: Any) -> Sampling:
    """Return settings of sampling. ConfigError names one that is unknown or cannot be used."""
    hint = f"the settings are {', '.join(Sampling.model_fields)}"
    if unknown := settings.keys() - Sampling.model_fields.keys():
        raise ConfigError(f"there is no setting {min(unknown)}", hint)
    try:
        return Sampling(**settings)
    except ValidationError as error:
        raise ConfigError(" ".join(explain_first_error(error)), hint) from None
