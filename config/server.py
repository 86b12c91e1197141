"""The section [server]: the network's side, and the server as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from ringserve.config.setting import GIB, INT_MAX, KIB, MIB, setting


@dataclass(frozen=True)
class Server:
    """The network's side, and the server as a whole."""

    host: str = setting("0.0.0.0", "address that both ports are bound to; '::' for IPv6")
    port: int = setting(8500, "gRPC port; 0 picks a free one, which is logged; -1: none", low=-1, high=65535)
    grpc_socket_path: str = setting("", "also take gRPC on this UNIX socket; empty: none")
    grpc_connection_age_ms_max: int = setting(
        0, "a gRPC connection this old is asked to leave (GOAWAY), so that load balancers can even out; 0: never"
    )
    rest_api_port: int = setting(8501, "REST port; 0 turns REST off, -1 picks a free one", low=-1, high=65535)
    frontends: int = setting(
        0, "frontend processes that share the ports; 0: one for every four usable CPUs, at least one", high=1024
    )
    grpc_engine: str = setting(
        "native",
        "which gRPC server: ringserve's own, or grpcio's (slower; the way out if a client meets a bug)",
        choices=("native", "grpcio"),
    )
    message_bytes_max: int = setting(
        2 * GIB - 1, "largest gRPC request message; TF Serving's limit", low=1 * KIB, shown="2147483647"
    )
    concurrent_streams_max: int = setting(1024, "gRPC calls in flight on one connection", low=1)
    connections_max: int = setting(
        10_000, "connections of one frontend; one more is closed at once, so that memory stays bounded", low=1
    )
    connections_per_address_max: int = setting(
        0, "the same of one client address (of IPv6, one /64); 0: no other limit, as behind a proxy"
    )
    client_stall_ms_max: int = setting(
        50_000,
        "a client that sends or takes less than 16 KiB of a message under way in this time is cut off; 0: never",
    )
    inflated_bytes_max: int = setting(
        100 * MIB, "largest compressed request after decompression, gRPC and REST", low=1 * KIB, shown="100MiB"
    )
    held_bytes_max: int = setting(
        INT_MAX, "bytes of requests not yet complete that one frontend holds, of gRPC and of REST each", low=1 * MIB,
        shown="2147483647",
    )
    unsent_bytes_max: int = setting(
        1 * GIB, "bytes of answers that one frontend holds for clients that do not take them, of gRPC and of REST each",
        low=1 * MIB, shown="1GiB",
    )
    rest_body_bytes_max: int = setting(
        256 * MIB, "largest REST request body; a larger one is answered 413", low=1 * KIB, shown="256MiB"
    )
    rest_api_enable_cors_support: bool = setting(False, "let web pages of any origin read REST answers (CORS headers)")
    rest_admin: str = setting(
        "local",
        "who may change models over the REST port, too: processes of this host, everybody who reaches it, or nobody",
        choices=("local", "all", "off"),
    )
    enable_signature_method_name_check: bool = setting(
        False, "refuse a signature whose method_name is not the one of the call"
    )
    enable_grpc_healthcheck_service: bool = setting(True, "serve grpc.health.v1.Health")
    enable_grpc_reflection: bool = setting(True, "serve grpc.reflection, so that grpcurl needs no .proto files")
    enable_profiler: bool = setting(True, "serve tensorflow.ProfilerService, which profiles one worker")
    ssl_config_file: str = setting("", "text-format SSLConfig with PEM texts: TLS for gRPC; empty: none")
    tls_cert_file: str = setting("", "PEM file of this server's certificate and its chain: turns TLS on; empty: none")
    tls_key_file: str = setting("", "PEM file of its private key, which is not encrypted")
    tls_ports: str = setting("both", "which ports speak TLS with these two files", choices=("both", "grpc", "rest"))
    tls_client_ca_file: str = setting("", "PEM file of the authorities that clients' certificates are verified with")
    tls_client_crl_file: str = setting("", "PEM file of lists of clients' certificates that are revoked; empty: none")
    tls_client_verify: str = setting(
        "none", "whether a client must, or may, show a certificate (mTLS)", choices=("none", "optional", "required")
    )
    admin_socket_path: str = setting(
        "", "UNIX socket for operators: models, metrics, health; empty: admin.sock in the run directory"
    )
    admin_port: int = setting(0, "port for operators, likewise; 0: none, -1 picks a free one", low=-1, high=65535)
    admin_host: str = setting("127.0.0.1", "address that it is bound to")
    metrics_port: int = setting(0, "port for metrics and health; 0: none, -1 picks a free one", low=-1, high=65535)
    metrics_host: str = setting("", "address that it is bound to; empty: that of the other ports")
    rest_metrics: bool = setting(True, "the REST port shows metrics, too")
    grpc_admin: str = setting(
        "all",
        "who may reload models and profile over gRPC: everybody who reaches the port, processes of this host, nobody",
        choices=("all", "local", "off"),
    )
    tls_check_ms: int = setting(5000, "how often TLS's files are read again; new ones hold from then on", low=10)
    metrics_path: str = setting(
        "/monitoring/prometheus/metrics", "REST path of the metrics under TF Serving's names; empty: none"
    )
    rest_timeout_ms: int = setting(
        30_000, "how long a REST request without X-Request-Timeout may take before it is answered 504; 0: no limit"
    )
    grpc_timeout_ms: int = setting(
        0, "how long a gRPC call without a deadline may take before it is answered DEADLINE_EXCEEDED; 0: no limit"
    )
    request_timeout_ms_max: int = setting(
        0, "no request may take longer, whatever deadline its client or these settings name; 0: no limit"
    )
    enable_serialization_as_tensor_content: bool = setting(
        False, "gRPC answers carry raw bytes (tensor_content), not typed fields: faster on both sides"
    )
    lame_duck_ms: int = setting(
        0, "before the drain of a stop: how long requests are still taken while health checks say not to send any"
    )
    drain_ms_max: int = setting(30_000, "how long requests in flight may take to finish after a stop was asked for")
    hang_ms_max: int = setting(
        10_000,
        "a broker or pool whose loop says nothing for this long hangs, and is killed and replaced; a frontend, which "
        "may be reading a large request, has three times as long; 0: never",
    )
    start_ms_max: int = setting(300_000, "one that is not ready after this long hangs likewise; 0: never")
    run_dir: str = setting(
        "", "folder for sockets between the processes; empty: a private one under $XDG_RUNTIME_DIR, /run or /tmp"
    )
    log_level: str = setting(
        "info", "least severe messages that are logged", choices=("debug", "info", "warning", "error")
    )
    log_format: str = setting("text", "log lines for people, or one JSON object a line", choices=("text", "json"))
