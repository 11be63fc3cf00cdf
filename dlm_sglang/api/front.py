"""What the HTTP front end knows of the server that it stands in front of."""

from __future__ import annotations

from dataclasses import dataclass, field

from dlm_sglang.params import ServerLimits
from dlm_sglang.settings import FrontSettings


@dataclass(frozen=True)
class Front:
    """Everything that the ASGI layer needs to serve a request.

    Attributes:
        limits: what a request may ask of the decode worker.
        served_model_name: the name that clients use; with a mode behind a colon it is served too.
        settings: what is enforced before SGLang sees the request.
    """

    limits: ServerLimits = field(default_factory=ServerLimits)
    served_model_name: str = "default"
    settings: FrontSettings = field(default_factory=FrontSettings)
