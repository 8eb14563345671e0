"""What is of the user's own: classes, found by the name under which they were registered, or by their path of import.

Encoders and decoders, networks of stage 2, and datasets have a register each: one name may stand for one of each sort.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from mandorla.errors import MandorlaError


@dataclass(frozen=True)
class Register:
    """Hold what can be named by one setting.

    - `setting`: such as `encoder_decoder.kind`; `taken`: names that mandorla's own have there
    - `fits(thing)`: whether a thing can be registered here; `what`: what it must be, as in "it is not ..."
    - `named`: what was registered, by name
    """

    setting: str
    what: str
    fits: Callable[[Any], bool]
    taken: tuple[str, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)

    def find(self, name: str) -> Any:
        """Return what was registered as `name`, or lies at this path of import, `package.module:Class`.

        Raises MandorlaError if there is nothing, or it does not fit.
        """
        if name in self.named:
            return self.named[name]
        module, separator, inside = name.partition(":")
        if not separator:
            known = "".join(f"{each}, " for each in [*self.taken, *self.named])
            raise MandorlaError(
                f"{self.setting} {name!r} is not known: use {'one of ' if known else ''}{known}or package.module:Class,"
                " or name the file that registers it under `imports`"
            )
        try:
            thing = getattr(import_module(module), inside)
        except Exception as error:  # whatever stands in that module
            raise MandorlaError(
                f"{self.setting} {name!r} cannot be imported ({error}): mend it, or name its file under `imports`"
            ) from error
        if not self.fits(thing):
            raise MandorlaError(f"{self.setting} {name!r} is not {self.what}")
        return thing

    def build(self, name: str, arguments: Sequence[Any], options: Mapping[str, Any], whose: str) -> Any:
        """Return what `name` gives when it is called with `arguments` and `options`; `whose` begins an error.

        Raises MandorlaError as `find` does, and for whatever goes wrong in the call.
        """
        thing = self.find(name)
        try:
            return thing(*arguments, **options)
        except Exception as error:  # whatever a user's code raises
            reason = str(error) if isinstance(error, TypeError) else f"{type(error).__name__}: {error}"
            raise MandorlaError(
                f"{whose} cannot be built: {reason}; mend its constructor or {self.setting.rpartition('.')[0]}.options"
            ) from error
