"""Settings of the source `interposer`: group `interposer`, environment `LBGUARD_INTERPOSER__...`."""

from pathlib import Path

from pydantic import BaseModel, Field

from lbguard.settings.fields import GROUP, Duration, FilePath, seconds


class InterposerSettings(BaseModel):
    """Streams and targets from the calls of nfqlb that an unmodified load balancer makes (source interposer)."""

    model_config = GROUP
    directory: FilePath = Field(
        default=Path("/run/lbguard/interposer"),
        description="The directory shared with the program nfqlb in the load balancer's container (LBGUARD_NFQLB_DIR).",
    )
    answer_timeout: Duration = seconds(
        0.15,
        "The longest time until a call is answered; the caller waits 200 ms.",
        low=0.02,
        high=0.19,
    )
    recent_loss: Duration = seconds(
        1.0, "A deactivate counts as a failed verification when the path was broken within this time.", high=60
    )
    confirm_timeout: Duration = seconds(
        15.0,
        "A target that a failed verification deactivated is removed if it is not activated again within this"
        " time after the repair of its path; the load balancer tries every 10 s.",
        low=1,
        high=3600,
    )
