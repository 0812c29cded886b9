"""What nodes took on this machine, relative to the roofline: measured once, and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fxoffload.plan_cache import write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Profile:
    """Measured seconds over those of the roofline: of nodes by name, and of all others.

    factors: sorted pairs of a node's name and its factor. default: for nodes that are not named.
    """

    factors: tuple[tuple[str, float], ...]
    default: float = 1.0

    @cached_property
    def by_name(self) -> Mapping[str, float]:
        """The factors by name."""
        return dict(self.factors)

    @cached_property
    def digest(self) -> str:
        """Tells profiles apart in the keys of compile caches."""
        return hashlib.sha256(self._dump().encode()).hexdigest()[:16]

    def find_factor(self, name: str) -> float:
        """That of the node called `name`."""
        return self.by_name.get(name, self.default)

    def keep(self, path: Path) -> None:
        """Write to `path`, in one piece; a folder that takes no file is only logged."""
        write_whole(path, self._dump().encode())

    @classmethod
    def recall(cls, path: Path) -> Profile | None:
        """What `keep` wrote, or None where there is nothing that can be read."""
        try:
            data: Any = json.loads(path.read_bytes())
            factors = [(str(name), float(factor)) for name, factor in data["factors"].items()]
            default = float(data["default"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.info("%s holds no profile: %s", path, error)
            return None
        if not all(0.0 < factor < float("inf") for _, factor in [*factors, ("", default)]):
            log.info("%s holds no profile: a factor is not a positive number", path)
            return None
        return cls(tuple(sorted(factors)), default)

    def _dump(self) -> str:
        return json.dumps({"default": self.default, "factors": dict(self.factors)}, indent=1)
