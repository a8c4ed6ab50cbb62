"""Configurations and processes of the proxies that are measured."""

import pathlib
import re
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

from ports import free_port


def listener(name, port, routes, filters=(), codec="AUTO"):
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name, "codec_type": codec, **routes,
            "http_filters": [*filters, {"name": "router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        }}]}],
    }


def inline(action):
    return {"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **action}]}]}}


def static_cluster(name, port, http2=False):
    cluster = {
        "name": name, "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
            "socket_address": {"address": "127.0.0.1", "port_value": port}}}}]}]},
    }
    if http2:
        cluster["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}}
    return cluster


class Process:
    """A pinned process whose CPU time and memory can be read."""

    def __init__(self, argv, cpu, log):
        self.log = open(log, "w")
        self.process = subprocess.Popen(["taskset", "-c", cpu, *argv], stdout=self.log, stderr=self.log)
        self.pid = self.process.pid

    def cpu(self):
        """Seconds of all its threads, those that have ended too; as the scheduler counts them, not in ticks."""
        # What clock_getcpuclockid(3) gives for a process.
        return time.clock_gettime(~self.pid << 3 | 2)

    def rss(self):
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.pid}/status").read_text()).group(1))

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
