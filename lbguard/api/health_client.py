"""Health check of the running service, once, over its unix socket (grpc.health.v1).

It is separate from `client`: a container runtime runs it every few seconds, so it imports as little as possible.
"""

from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lbguard.settings.notation import unix_target

ANSWER_TIMEOUT_S = 3.0
"""A loop that does not answer within this counts as hung."""


def unhealthy_reason(path: Path, service: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
    """Return why the service is not healthy; empty when it is.

    Args:
        path: the service's socket.
        service: what is asked for, `Liveness` or `Readiness`.
        timeout_s: how long an answer is waited for.
    """
    with grpc.insecure_channel(unix_target(path)) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            match error.code():
                case grpc.StatusCode.UNAVAILABLE:
                    return (
                        f"lbguard is not running ({'nothing listens on' if path.exists() else 'no socket at'} {path})"
                    )
                case grpc.StatusCode.DEADLINE_EXCEEDED:
                    return f"{path} did not answer within {timeout_s:g} s"
                case code:
                    return f"{path}: {code.name}: {error.details()}"
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return f"{service} is {status}; run `lbguard status` for the reason"
