"""Settings of group `mesh`: the surrounding mesh's own settings, for the checks of both against each other."""

from pydantic import BaseModel

from lbguard.settings.fields import GROUP, OptionalDuration, seconds


class MeshSettings(BaseModel):
    """Settings of the surrounding mesh. Only check-config reads them, and warns about contradictions."""

    model_config = GROUP
    request_timeout: OptionalDuration = seconds(
        None,
        "Time for which clients wait for a connection (Meridio: REQUEST_TIMEOUT, 15s); unset: not checked.",
        high=3600,
    )
    max_backoff: OptionalDuration = seconds(
        None,
        "The longest wait before the mesh dials again (Meridio: GRPC_MAX_BACKOFF, 5s); unset: not checked.",
        high=3600,
    )
    ip_release_delay: OptionalDuration = seconds(
        None,
        "Time for which proxies keep the address of a closed connection (Meridio: IP_RELEASE_DELAY, 20s);"
        " unset: not checked.",
        high=3600,
    )

    @property
    def heal_path_s(self) -> float:
        """Return the repair time when the first request is lost: its timeout, then the next one's wait; 0: unknown."""
        return (self.request_timeout or 0.0) + (self.max_backoff or 0.0)
