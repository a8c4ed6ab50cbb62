"""`envoy.config.core.v3.GrpcService`, as bytes."""


def field(number, data):
    return bytes([number << 3 | 2, len(data)]) + data


def service(cluster="grpc", authority="", longest=0, skip=False, timeout=b"", metadata=()):
    """A serialized GrpcService."""
    envoy = field(1, cluster.encode()) if cluster else b""
    envoy += field(2, authority.encode()) if authority else b""
    envoy += field(4, bytes([8, longest])) if longest else b""
    envoy += bytes([5 << 3, 1]) if skip else b""
    out = field(1, envoy)
    out += field(3, timeout) if timeout else b""
    for name, value in metadata:
        out += field(5, field(1, name.encode()) + field(2, value.encode()))
    return out
