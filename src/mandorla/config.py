"""Typed settings: frozen, strict, printable.

Every class that can be configured has a settings class beside it that derives from `Settings`. Values come from
defaults < YAML file < `key.sub=value` on the command line.
"""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Refuse unknown keys and wrong types; never change once made."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)
