"""The preflight of an address: what stands there is found out by one call and within moments, before entering.

Ray itself tries for 20 seconds with a wrong token, hangs where the other side speaks TLS and it does not, and enters a
cluster that lets everybody in without a word. So the one question that every head can answer - which Ray and Python
are you - is asked first: once without a token, which must be refused, and once with ours.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from frmu.errors import FederationError

__all__ = ["TOKEN", "authorization", "closed", "preflight", "uses_tls"]

TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
_SECONDS = 10.0
_TLS = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT")


def preflight(named: str, insecure: bool = False) -> str:
    """The address by which Ray is to enter the cluster at auto, HOST:PORT or ray://HOST:PORT.

    Raises `FederationError` where nobody should enter: where nothing answers, or by TLS alone; where everybody is let
    in, unless `insecure`; where our token is refused; and where Ray or Python are of another version than here.
    """
    address = _reached(named)
    _listening(address, named)
    with _channel(address) as channel:
        ask = _client_server if address.startswith("ray://") else _gcs
        answer = _asked(ask, channel, named, None)
        if answer is not None and not insecure:
            raise FederationError(closed(named))
        if answer is None:
            header = authorization()
            answer = _asked(ask, channel, named, header) if header else None
            if answer is None:
                wrong = "is not the one" if header else "is missing"
                raise FederationError(
                    f"the Ray cluster at {named} demands its token, and the one here {wrong}: {TOKEN}"
                )
    if answer:
        _same_versions(json.loads(answer), named)
    return address


def closed(address: str) -> str:
    """Return what is said of a cluster that lets everybody in."""
    return (
        f"the Ray cluster at {address} asks for no token, so whoever reaches it runs code beside the records. Start "
        "its nodes with RAY_AUTH_MODE=token and a token (`ray get-auth-token --generate`), or give --insecure to go in "
        "anyway"
    )


def authorization() -> str:
    """The header that carries our token, as Ray finds it; empty where there is none. Never to be logged."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError

    try:
        return str(AuthenticationTokenLoader.instance().get_token_for_http_header().get("authorization", ""))
    except AuthenticationError:
        return ""


def uses_tls() -> bool:
    """Return whether this process speaks TLS to Ray."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _reached(named: str) -> str:
    """The address as Ray would go to it: a head on this machine for "auto", this node's own instead of loopback."""
    if named.startswith("ray://"):
        return named if named.rpartition(":")[2].isdigit() else f"{named}:10001"
    from ray._private.services import canonicalize_bootstrap_address_or_die

    return str(canonicalize_bootstrap_address_or_die(named))


def _listening(address: str, named: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except (OSError, OverflowError) as error:
        other = "" if named in (address, "auto") else (
            f"; Ray looks for it at {address}: where the head listens on loopback only, which is "
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, its clients need that too"
        )  # fmt: skip
        raise FederationError(f"no Ray cluster at {named}: {error}; check the address{other}") from None


def _channel(address: str) -> Any:
    import grpc

    where = address.removeprefix("ray://")
    options = [("grpc.enable_http_proxy", 0)]
    if not uses_tls():
        return grpc.insecure_channel(where, options)
    try:
        authority, key, certificate = (Path(os.environ[name]).read_bytes() for name in _TLS)
    except (KeyError, OSError) as error:
        raise FederationError(
            f"RAY_USE_TLS=1, and what {', '.join(_TLS)} must name cannot be read: {error}; `python cluster/tls.py` "
            "makes such files"
        ) from None
    return grpc.secure_channel(where, grpc.ssl_channel_credentials(authority, key, certificate), options)


def _gcs(channel: Any, header: list[tuple[str, str]]) -> bytes:
    """The versions of a cluster, as JSON, from its head."""
    from ray.core.generated import gcs_service_pb2 as messages
    from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub

    request = messages.InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")
    return bytes(InternalKVGcsServiceStub(channel).InternalKVGet(request, metadata=header, timeout=_SECONDS).value)


def _client_server(channel: Any, header: list[tuple[str, str]]) -> bytes:
    """Nothing, from the server of Ray Client: it compares the versions itself."""
    from ray.core.generated import ray_client_pb2 as messages
    from ray.core.generated.ray_client_pb2_grpc import RayletDriverStub

    request = messages.ClusterInfoRequest(type=messages.ClusterInfoType.PING)
    RayletDriverStub(channel).ClusterInfo(request, metadata=[*header, ("client_id", "frmu")], timeout=_SECONDS)
    return b""


def _asked(ask: Any, channel: Any, address: str, header: str | None) -> bytes | None:
    """An answer, or None where it is refused for the token."""
    import grpc

    try:
        answer: bytes = ask(channel, [("authorization", header)] if header else [])
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return None
        raise FederationError(f"{_not_ray(address)} ({error.code().name.lower().replace('_', ' ')})") from None
    return answer


def _not_ray(address: str) -> str:
    if uses_tls():
        return (
            f"what listens at {address} does not take the TLS that RAY_USE_TLS=1 asks for here: start the cluster with "
            f"RAY_USE_TLS=1 and certificates of the same authority, see {', '.join(_TLS)}, and check the address"
        )
    return (
        f"what listens at {address} does not answer as a Ray head does: if its nodes speak TLS, set RAY_USE_TLS=1 and "
        f"{', '.join(_TLS)}; otherwise check the port (the head's own, 6379 where none was given; not the dashboard's)"
    )


def _same_versions(cluster: dict[str, Any], address: str) -> None:
    import platform

    import ray

    level = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    there = (cluster["ray_version"], cluster["python_version"])
    here = (ray.__version__, platform.python_version())
    if there[0] == here[0] and there[1].split(".")[:level] == here[1].split(".")[:level]:
        return
    raise FederationError(
        f"the cluster at {address} runs Ray {there[0]} on Python {there[1]}, this process Ray {here[0]} on Python "
        f"{here[1]}: nodes and clients must have the same. Install with -c cluster/constraints.txt under that Python"
    )
